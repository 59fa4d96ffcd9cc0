"""What saves memory changes no number: offload, sub-groups, shared sequences, adapters, fp16, and how the model is loaded and written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import make_spec, train_on_ranks
from w2sr.training.spec import TrainSpec

PACKED = {"packing": True, "global_batch_size": 4, "micro_batch_size": 1}
LORA = {"lora": {"rank": 4}, "learning_rate": 1e-2}
IN_FILES = {"export": {"precision": "fp32", "shard_size_gb": 2e-5}}
# Each is compared with the first of its kind.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "rows": {
        "zero0": {"zero_stage": 0},
        "zero2-offload": {"zero_stage": 2, "memory": {"offload_optimizer": "cpu"}},
        "zero3-offload": {"zero_stage": 3, "memory": {"offload_optimizer": "cpu", "offload_parameters": "cpu"}},
        "zero3-hpz": {"zero_stage": 3, "memory": {"hpz_partition_size": 2}},
        "zero3-activations": {"zero_stage": 3, "gradient_checkpointing": True, "memory": {"offload_activations": True}},
    },
    "sequences": {
        "whole": {"zero_stage": 0, **PACKED},
        "shared": {"zero_stage": 3, "gradient_checkpointing": True, **PACKED, "memory": {"sequence_parallel": 2}},
    },
    "adapters": {"lora0": {"zero_stage": 0, **LORA}, "lora3": {"zero_stage": 3, **LORA}},
    "halves": {
        "zero2-bf16": {"zero_stage": 2, "precision": "bf16", **IN_FILES},
        "zero3-bf16": {"zero_stage": 3, "precision": "bf16", **IN_FILES},
        "fp16": {"zero_stage": 2, "precision": "fp16", "deepspeed": {"fp16": {"initial_scale_power": 40}}},
    },
}
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings of this file, done one after another by one pair of processes."""
    folder = tmp_path_factory.mktemp("memory")
    specs = [spec_of(folder, name, changes) for cases in CASES.values() for name, changes in cases.items()]
    for code, output in train_on_ranks(folder, specs):
        assert code == 0, output
    return folder


def spec_of(folder: Path, name: str, changes: dict[str, Any]) -> TrainSpec:
    return make_spec(folder, name, max_steps=STEPS, checkpoint_every=100, **changes)


def log(folder: Path, name: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def pairs() -> list[tuple[str, str]]:
    return [(first, other) for cases in CASES.values() for first, other in itertools.product(list(cases)[:1], list(cases)[1:])]


@pytest.mark.parametrize(("first", "other"), pairs())
def test_losses_and_norms_are_those_without_it(folder: Path, first: str, other: str) -> None:
    expected, found = log(folder, first), log(folder, other)
    assert len(expected) == len(found) == STEPS
    tolerance = 1e-2 if other == "fp16" else 1e-5
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=tolerance)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=10 * tolerance)


def state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", ["zero2-offload", "zero3-offload", "zero3-hpz", "zero3-activations"])
def test_weights_are_those_without_it(folder: Path, name: str) -> None:
    expected, found = state(folder / "zero0" / "model"), state(folder / name / "model")
    assert expected.keys() == found.keys()
    assert sum(float((expected[name] - found[name]).abs().sum()) for name in expected) / sum(one.numel() for one in found.values()) < 4e-8


def test_adapters_move_only_what_they_adapt_and_stand_beside_the_merged_model(folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before, after = state(folder / "model"), state(folder / "lora3" / "model")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    merged = AutoModelForCausalLM.from_pretrained(folder / "lora3" / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = PeftModel.from_pretrained(base, folder / "lora3" / "model" / "adapter").eval()
    ids = torch.arange(7, 39)[None]
    torch.testing.assert_close(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["zero2-bf16", "zero3-bf16"])
def test_an_export_in_files_of_a_size_holds_the_master_weights(folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model_folder = folder / name / "model"
    files = sorted(path.name for path in model_folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((model_folder / "model.safetensors.index.json").read_text())
    found = state(model_folder)
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.dtype == torch.float32
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())


def test_a_step_that_overflows_in_fp16_is_repeated_with_the_same_rows_at_a_lower_scale(folder: Path) -> None:
    # 2 ** 40 times any gradient of these is beyond fp16: without repetition all these steps would have been lost.
    assert [row["step"] for row in log(folder, "fp16")] == list(range(1, STEPS + 1))
    assert all(0 < row["grad_norm"] < 100 for row in log(folder, "fp16"))
    assert not (folder / "fp16.error0").exists()

"""`w2sr plan` as a user sees it: the table, the refusals, the exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cli import main
from tests.tiny import make_tiny_model
from w2sr.errors import UserError
from w2sr.planning.assumptions import GIB, Assumptions
from w2sr.planning.cache import cache_bytes
from w2sr.planning.layout import Layout
from w2sr.planning.search import cheapest_change, fastest
from w2sr.planning.shapes import config_folder, shape_from, shape_of
from w2sr.planning.speed import flops_per_token, training_speed
from w2sr.planning.training_memory import training_memory
from w2sr.training.config import TrainConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.txt"
QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
QWEN_1B = {
    **QWEN_7B,
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TRAIN = {
    "num_ranks": 8,
    "use_gpu": True,
    "precision": "bf16",
    "zero_stage": 2,
    "gradient_checkpointing": True,
    "epochs": 3,
    "global_batch_size": 64,
    "micro_batch_size": 1,
    "max_length": 8192,
}


ASKED = {
    "num_ranks": 8,
    "use_gpu": True,
    "precision": "bf16",
    "zero_stage": 1,
    "max_steps": 1,
    "global_batch_tokens": 4_194_304,
    "micro_batch_size": 1,
    "max_length": 8192,
}


def write_config(folder: Path, train: dict[str, Any] | None = None) -> Path:
    """A configuration for GPUs whose models are folders with a config.json and nothing else."""
    for name, values in (("strong-7b", QWEN_7B), ("weak-1.5b", QWEN_1B)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(values))
    gpus = {"engine": {"kind": "vllm"}, "pool": {"replicas": 8, "gpus_per_replica": 1}}
    values = {
        "run_dir": str(folder / "run"),
        "title": "A weak teacher of 1.5 B, a strong student of 7 B",
        "prompts": {"source": {"kind": "file", "path": "prompts.jsonl"}, "num_train": 10_000, "num_test": 500},
        "teachers": [
            {"name": "weak", "model": str(folder / "weak-1.5b"), "sampling": {"max_new_tokens": 4096}, "samples_per_prompt": 4, **gpus},
            {"name": "theirs", "engine": {"kind": "recorded", "path": "traces.jsonl"}},
        ],
        "student": {"model": str(folder / "strong-7b")},
        "curate": {"arms": ["all", "correct"]},
        "train": TRAIN | (train or {}),
        "evaluate": {"sampling": {"max_new_tokens": 8192}, **gpus},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_table_is_the_golden_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(write_config(tmp_path))]) == 0
    text = capsys.readouterr().out
    if os.environ.get("W2SR_ACCEPT"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "to accept the change: W2SR_ACCEPT=1 python -m pytest tests/unit/test_plan.py -k golden"
    assert max(map(len, text.splitlines())) <= 100


def test_what_cannot_fit_is_refused_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, {"gradient_checkpointing": False, "zero_stage": 1, "micro_batch_size": 2})
    assert main(["plan", str(config)]) == 2
    last = " ".join(capsys.readouterr().out.split("\n\n")[-1].split())
    assert last.startswith("train: 2 students")
    assert "does not fit" in last
    remedy = last.split("It would fit with ")[1].split(", ")
    assert remedy == ["train.gradient_checkpointing=true", "train.zero_stage=2"]
    assert main(["plan", str(config), *remedy]) == 0


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(write_config(tmp_path)), "--json", "--gpus", "16", "--gpu-memory-gb", "20"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    train = next(item for item in found["items"] if item["stage"] == "train")
    assert train["num_devices"] == 16
    assert train["memory"]["has"] == 20 * GIB
    assert train["memory"]["needs"] == sum(train["memory"]["parts"].values())
    assert train["num_parameters"] == 7_615_616_512
    assert found["elsewhere"] == ["teacher theirs (recorded)"]


def test_no_weights_are_needed_and_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert main(["plan", str(config), "student.model=some/model-that-is-nowhere"]) == 2
    assert "copy the model's config.json" in capsys.readouterr().err
    assert main(["plan", str(config), "--efficiency", "0"]) == 2
    assert "--efficiency=0: give a finite number of more than 0, 1 at most" in capsys.readouterr().err
    (tmp_path / "strong-7b" / "config.json").write_text('{"model_type": "perceptron"}')
    assert main(["plan", str(config)]) == 2
    assert "model_type='perceptron'" in capsys.readouterr().err
    (tmp_path / "strong-7b" / "config.json").write_text("{")
    assert main(["plan", str(config)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        shape_of("x", tmp_path)


def test_cheaper_changes_come_first() -> None:
    shape = shape_from("7b", QWEN_7B)
    asked = TrainConfig.model_validate({**ASKED, "micro_batch_size": 8})

    def change(gpu_gib: float, host_gib: float = 1000) -> dict[str, object] | None:
        option = cheapest_change(shape, asked, Assumptions(gpu_gib=gpu_gib, host_gib=host_gib))
        return None if option is None else option.changes

    assert change(300) == {"train.gradient_checkpointing": True}
    assert change(79) == {"train.gradient_checkpointing": True, "train.zero_stage": 2}
    smaller = change(40)
    assert smaller is not None
    assert "train.micro_batch_size" in smaller
    assert "train.num_ranks" not in smaller
    more = change(12)
    assert more is not None
    assert "train.num_ranks" in more
    assert change(3) is None


def test_what_is_proposed_fits_and_is_the_fastest() -> None:
    shape = shape_from("7b", QWEN_7B)
    asked = TrainConfig.model_validate(ASKED)
    found = fastest(shape, asked, Assumptions(), 4e6)
    assert found is not None
    option, speed = found
    assert option.memory.fits
    assert option.layout.offload_optimizer == "device"
    slower = dataclasses.replace(option.layout, offload_optimizer="cpu")
    assert training_speed(shape, slower, Assumptions(), 4e6).tokens_per_s < speed.tokens_per_s
    assert fastest(shape, asked, Assumptions(gpu_gib=2), 4e6) is None


def test_more_sharding_never_needs_more_memory() -> None:
    shape = shape_from("1b", QWEN_1B)
    assumed = Assumptions()
    layouts = [Layout(64, stage, "bf16", recompute=True, micro_rows=1, length=4096) for stage in (1, 2, 3)]
    needs = [training_memory(shape, layout, assumed.gpu(8)).parts for layout in layouts]
    states = [sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer")) for parts in needs]
    assert states == sorted(states, reverse=True)
    offloaded = training_memory(shape, dataclasses.replace(layouts[2], offload_optimizer="cpu", offload_parameters="cpu"), assumed.gpu(8))
    # 16-bit weights, fp32 gradients, master copy and two moments: 18 bytes a parameter over the ranks, all of them on the host.
    assert offloaded.host == pytest.approx(18 * shape.num_parameters / 64, rel=0.001)


def test_the_arithmetic_of_a_token_is_that_of_the_trainer() -> None:
    from w2sr.planning.meta import meta_model
    from w2sr.training.flops import ModelFlops

    for values in (QWEN_1B, QWEN_7B):
        shape = shape_from("x", values)
        flops = ModelFlops.of(meta_model("x", values))
        # Of a token in a row of 4,096: the mean over the row of what a token attends to.
        import numpy as np

        assert flops_per_token(shape, 4096) == pytest.approx(flops.of_rows(np.array([4096])) / 4096, rel=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama", "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 1},
        {"model_type": "gemma3_text", "sliding_window": 16, "head_dim": 16, "num_key_value_heads": 2},
    ],
)
def test_the_cache_of_keys_and_values_is_exact(values: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 7, "vocab_size": 99}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values, **sizes))
    # The last token that is drawn is never put in.
    answer = model.generate(
        torch.ones(2, 20, dtype=torch.long), max_new_tokens=13, min_new_tokens=13, return_dict_in_generate=True, pad_token_id=0
    )
    held = sum(each.numel() * each.element_size() for layer in answer.past_key_values.layers for each in (layer.keys, layer.values))
    assert 2 * cache_bytes(shape_from("tiny", {**values, **sizes}), 32, "float32") == held


def test_a_shape_has_every_parameter_of_the_real_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path / "model")
    real = AutoModelForCausalLM.from_pretrained(folder)
    assert shape_of("tiny", config_folder(str(folder))).num_parameters == sum(each.numel() for each in real.parameters())

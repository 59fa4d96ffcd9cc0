"""Two gloo ranks with accumulation against plain AdamW in one process, for every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import make_spec, renamed, steps_logged, train_on_ranks, weights
from tests.packed import collate_padded
from w2sr.training.data import load_rows
from w2sr.training.order import Course
from w2sr.training.schedule import learning_rate
from w2sr.training.spec import TrainResult, TrainSpec

Reference = tuple[dict[str, Any], list[tuple[float, float]]]
# Batches by tokens: a step has about seven packed sequences, or one or two rows, which is too few for two ranks in some steps.
TOKENS = {"global_batch_size": None, "global_batch_tokens": 400, "micro_batch_size": None, "micro_batch_tokens": 150}
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero2-packed": {"zero_stage": 2, "packing": True, "global_batch_size": 8},
    "zero3-packed-recomputed": {"zero_stage": 3, "packing": True, "gradient_checkpointing": True} | TOKENS,
    "zero3-idle-ranks": {"zero_stage": 3} | TOKENS | {"global_batch_tokens": 64},
    "zero2-bf16": {"zero_stage": 2, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings of this file, done one after another by one pair of processes."""
    folder = tmp_path_factory.mktemp("exact")
    specs = [make_spec(folder, name, **changes) for name, changes in CASES.items()]
    specs += [renamed(specs[2], "zero2-again"), poisoned(folder)]
    specs += [make_spec(folder, f"exploding{stage}", zero_stage=stage) for stage in (0, 2, 3)]
    for code, output in train_on_ranks(folder, specs):
        assert code == 0, output
    return folder


def poisoned(folder: Path) -> TrainSpec:
    """A training from a model with an infinite weight."""
    import shutil

    from safetensors.torch import load_file, save_file

    spec = make_spec(folder, "poisoned")
    broken = folder / "broken"
    shutil.copytree(spec.model, broken)
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][:] = float("inf")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    return TrainSpec(**{**vars(spec), "model": str(broken)})


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return plain_adamw(make_spec(folder, "reference"))


def plain_adamw(spec: TrainSpec) -> Reference:
    """The same training in this process: whole batch, torch's AdamW, nothing of DeepSpeed. Return weights and (loss, norm) of each step."""
    import torch
    from transformers import AutoModelForCausalLM

    train, rows = spec.train, load_rows(Path(spec.rows))
    course = Course(rows.lengths, rows.parts, train, spec.seed)
    model = AutoModelForCausalLM.from_pretrained(spec.model).train()
    groups = [
        {"params": [parameter for parameter in model.parameters() if (parameter.dim() > 1) == decays], "weight_decay": decays * 0.1}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    log = []
    for step in range(5):
        batch = collate_padded([rows.row(int(n)) for n in course.step(step).rows], 0)
        logits = model(input_ids=torch.from_numpy(batch.input_ids)).logits
        optimizer.zero_grad()
        targets = torch.from_numpy(batch.labels[:, 1:]).flatten()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
        loss.backward()
        log.append((loss.item(), torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm).item()))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, 5)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, log


def differences(one: dict[str, Any], other: dict[str, Any]) -> Any:
    import torch

    assert one.keys() == other.keys()
    return torch.cat([(one[name].float() - other[name]).abs().flatten() for name in one])


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2-packed", "zero3-packed-recomputed", "zero3-idle-ranks"])
def test_two_ranks_with_uneven_micro_batches_equal_plain_adamw(folder: Path, reference: Reference, name: str) -> None:
    spec = make_spec(folder, name, **CASES[name])
    expected, log = plain_adamw(spec) if "-" in name else reference  # padded, one row a sequence, whatever the layout of the training is
    difference = differences(weights(spec), expected)
    assert difference.mean() < 4e-8
    # Where a gradient is nothing but rounding, Adam makes a step of it: those few elements may differ, but by far less than a step.
    assert (difference > 1e-6).float().mean() < 5e-4
    assert difference.max() < 1e-4
    # Adam does not see a wrong scale of the gradient; its norm does.
    rows = [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx([loss for loss, _ in log], rel=1e-5)
    assert [row["grad_norm"] for row in rows] == pytest.approx([norm for _, norm in log], rel=1e-4)


def test_a_training_gives_the_same_bits_after_other_trainings_in_the_same_process(folder: Path) -> None:
    one, again = (Path(folder / name / "model" / "model.safetensors").read_bytes() for name in ("zero2", "zero2-again"))
    assert one == again


def test_bf16_exports_its_own_dtype_near_what_fp32_gives(folder: Path, reference: Reference) -> None:
    import torch

    spec = make_spec(folder, "zero2-bf16", **CASES["zero2-bf16"])
    assert {tensor.dtype for tensor in weights(spec).values()} == {torch.bfloat16}
    assert differences(weights(spec), reference[0]).mean() < 5e-4


def test_an_infinite_loss_stops_the_run_and_names_step_and_examples(folder: Path) -> None:
    for rank in (0, 1):
        message = (folder / f"poisoned.error{rank}").read_text()
        assert message.startswith("poisoned: the loss of step 1 is not finite; the weights were not changed by it.")
        assert ", e" in message
        assert "train.learning_rate=0.003" in message
    assert not (folder / "poisoned" / "model").exists()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_without_a_finite_norm_stops_the_run(folder: Path, stage: int) -> None:
    message = (folder / f"exploding{stage}.error0").read_text()
    assert f"exploding{stage}: the gradient of step 1 is not finite; the weights were not changed by it." in message


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_export_is_complete_and_tied_embeddings_stay_tied(folder: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_folder = folder / name / "model"
    assert "lm_head.weight" not in weights(make_spec(folder, name, **CASES[name]))
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(model_folder).chat_template
    assert not any(str(folder) in path.read_text() for path in model_folder.glob("*.json"))  # bytes do not depend on the place


def test_a_finished_training_leaves_result_and_metrics_and_no_checkpoint(folder: Path) -> None:
    spec = make_spec(folder, "zero2")
    result = TrainResult.load(Path(spec.output))
    assert result is not None
    rows = load_rows(Path(spec.rows))
    course = Course(rows.lengths, rows.parts, spec.train, spec.seed)
    seen = [n for step in range(5) for n in course.step(step).rows]
    assert result.steps == 5
    assert result.tokens == int(rows.lengths[seen].sum())
    assert result.supervised_tokens == int((rows.lengths - rows.prefixes)[seen].sum())
    assert steps_logged(spec) == [1, 2, 3, 4, 5]
    assert not (Path(spec.output) / "checkpoints").exists()

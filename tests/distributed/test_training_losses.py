"""Trainings under each loss: two gloo ranks against plain PyTorch in one process, row by row; resumed against calm."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import make_spec, random_rows, renamed, train_on_ranks, weights
from tests.distributed.test_training_is_exact import differences
from w2sr.packing.rows import Row
from w2sr.training.data import load_rows, save_rows
from w2sr.training.order import Course
from w2sr.training.schedule import learning_rate
from w2sr.training.spec import TrainSpec

BETA, LEAST = 20.0, 0.1
CASES: dict[str, dict[str, Any]] = {
    "weighted": {"zero_stage": 3},
    "traces": {"zero_stage": 2, "packing": True, "global_batch_size": 8, "loss": {"normalise": "traces"}},
    "confidence": {"zero_stage": 2, "loss": {"confidence": 0.6, "confidence_warmup": 0.8}},
    "kl": {"zero_stage": 3, "loss": {"kl_to_base": 0.5, "gce_q": 0.4}},
    "kl-packed": {"zero_stage": 0, "packing": True, "global_batch_size": 8, "loss": {"kl_to_base": 0.5, "gce_q": 0.4, "kernel": "full"}},
    "progress": {"zero_stage": 2, "max_steps": 7, "loss": {"progress": {"beta": BETA, "min_weight": LEAST}}},
    "neftune": {"zero_stage": 2, "packing": True, "global_batch_size": 8, "loss": {"neftune_alpha": 5.0}},
}
LossOfRow = Callable[[int, Row, Any, Any, Any], Any]  # step, row, its targets, logits and the base's logits at them: a scalar


def make(folder: Path, name: str) -> TrainSpec:
    spec = make_spec(folder, name, **CASES[name])
    if name != "weighted":
        return spec
    path = folder / "weighted.rows.arrow"
    if not path.exists():
        rows = random_rows(40, seed=0)
        save_rows(path, [dataclasses.replace(row, weight=0.25 + number % 4) for number, row in enumerate(rows)])
    return dataclasses.replace(spec, rows=str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings of this file; two also stopped in their fourth step and resumed, and one resumed by another number of ranks."""
    folder = tmp_path_factory.mktemp("losses")
    stopped = [renamed(make(folder, name), f"{name}-resumed") for name in ("progress", "neftune")]
    elastic = make_spec(folder, "progress-elastic", **CASES["progress"], min_ranks=1)
    calm = [make(folder, name) for name in CASES]
    for specs, num_ranks, num_steps in (([*stopped, elastic], 2, 4), ([*calm, *stopped], 2, None), ([elastic], 1, None)):
        for code, output in train_on_ranks(folder, specs, num_ranks, num_steps):
            assert code == 0, output
    return folder


def plain(spec: TrainSpec, loss_of_row: LossOfRow, per_trace: bool = False) -> tuple[dict[str, Any], list[float], list[float]]:
    """The same training in this process, one row at a time; return weights, and NLL and loss of each step."""
    import torch
    from transformers import AutoModelForCausalLM

    rows, base = load_rows(Path(spec.rows)), AutoModelForCausalLM.from_pretrained(spec.model).eval()
    course, model = Course(rows.lengths, rows.parts, spec.train, spec.seed), AutoModelForCausalLM.from_pretrained(spec.model).train()
    decayed = [[parameter for parameter in model.parameters() if (parameter.dim() > 1) == decays] for decays in (True, False)]
    groups = [{"params": decayed[0], "weight_decay": 0.1}, {"params": decayed[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    found: tuple[list[float], list[float]] = [], []
    for step in range(course.num_steps):
        total, nll, divisor = torch.zeros(()), 0.0, 0.0
        num_tokens = 0
        optimizer.zero_grad()
        for number in course.step(step).rows:
            row = rows.row(int(number))
            ids = torch.tensor([row.ids])
            targets, at = ids[0, row.num_prefix :], slice(row.num_prefix - 1, -1)
            with torch.no_grad():
                of_base = base(input_ids=ids).logits[0, at]
            logits = model(input_ids=ids).logits[0, at]
            total = total + row.weight * loss_of_row(step, row, targets, logits, of_base)
            divisor += row.weight * (1 if per_trace else len(targets))
            nll += token_nll(logits, targets).sum().item()
            num_tokens += len(targets)
        torch.autograd.backward(total / divisor)
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec.train, step, course.num_steps)
        optimizer.step()
        found[0].append(nll / num_tokens)
        found[1].append(float(total.detach()) / divisor)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, *found


def token_nll(logits: Any, targets: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def sum_nll(_: int, __: Row, targets: Any, logits: Any, ___: Any) -> Any:
    return token_nll(logits, targets).sum()


def mean_nll(_: int, __: Row, targets: Any, logits: Any, ___: Any) -> Any:
    return token_nll(logits, targets).mean()


def with_confidence(step: int, _: Row, targets: Any, logits: Any, __: Any) -> Any:
    alpha = 0.6 * min(1.0, step / 4)
    return ((1 - alpha) * token_nll(logits, targets) + alpha * token_nll(logits, logits.argmax(1))).sum()


def gce_and_kl(_: int, __: Row, targets: Any, logits: Any, base: Any) -> Any:
    p, q = logits.softmax(1), base.softmax(1)
    own = p.gather(1, targets[:, None])[:, 0]
    return ((1 - own**0.4) / 0.4 + 0.5 * (q * (q / p).log()).sum(1)).sum()


class ByProgress:
    """GLOW written down: the weight of a trace is a constant, made of its mean NLL now and when it was last seen."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []  # in each step: a row may come twice in one
        self.num_weighted = 0

    def __call__(self, step: int, row: Row, targets: Any, logits: Any, _: Any) -> Any:
        if len(self.seen) == step:
            self.seen.append({})
        losses = token_nll(logits, targets)
        now = losses.mean().item()
        before = next((each[row.example_id] for each in reversed(self.seen[:step]) if row.example_id in each), None)
        self.seen[step][row.example_id] = now
        if before is None:
            return losses.sum()
        self.num_weighted += 1
        return losses.sum() * max(LEAST, min(5.0, 1 - 1 / (1 + np.exp(-BETA * (before - now)))))


REFERENCES: dict[str, tuple[LossOfRow, bool]] = {
    "weighted": (sum_nll, False),
    "traces": (mean_nll, True),
    "confidence": (with_confidence, False),
    "kl": (gce_and_kl, False),
    "kl-packed": (gce_and_kl, False),
    "progress": (ByProgress(), False),
}


def metrics(folder: Path, name: str, key: str) -> list[float]:
    rows = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows if "grad_norm" in row]


@pytest.mark.parametrize("name", REFERENCES)
def test_a_training_under_a_loss_equals_plain_pytorch(folder: Path, name: str) -> None:
    loss_of_row, per_trace = REFERENCES[name]
    expected, nll, loss = plain(make(folder, name), loss_of_row, per_trace)
    difference = differences(weights(make(folder, name)), expected)
    assert difference.mean() < 1e-7
    assert (difference > 1e-6).float().mean() < 1e-3
    assert metrics(folder, name, "loss") == pytest.approx(nll, rel=1e-5)
    if name != "weighted":  # whose configuration is the plain one: its weights are in its rows
        assert metrics(folder, name, "objective") == pytest.approx(loss, rel=1e-5)
    if isinstance(loss_of_row, ByProgress):
        assert loss_of_row.num_weighted > 50


@pytest.mark.parametrize("name", ["progress", "neftune"])
def test_a_resumed_training_ends_in_the_bits_of_the_calm_one(folder: Path, name: str) -> None:
    calm, resumed = ((folder / each / "model" / "model.safetensors").read_bytes() for each in (name, f"{name}-resumed"))
    assert calm == resumed


def test_what_is_known_of_the_traces_survives_another_number_of_ranks(folder: Path) -> None:
    assert metrics(folder, "progress-elastic", "objective") == pytest.approx(metrics(folder, "progress", "objective"), rel=1e-4)
    assert json.loads((folder / "progress-elastic" / "result.json").read_text())["sizes"] == [[1, 2], [5, 1]]


def test_noise_on_embeddings_changes_the_loss_of_training_a_little(folder: Path) -> None:
    noisy = metrics(folder, "neftune", "loss")
    calm = plain(make(folder, "neftune"), sum_nll)[1]
    assert noisy != pytest.approx(calm, rel=1e-4)
    assert noisy == pytest.approx(calm, rel=0.1)

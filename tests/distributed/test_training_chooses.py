"""What decides which weights become the student: averages, Muon, the selection split, against plain torch in one process."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import make_spec, train_on_ranks, weights
from tests.packed import collate_padded
from w2sr.training.data import load_rows
from w2sr.training.order import Course
from w2sr.training.spec import TrainResult, TrainSpec

State = dict[str, Any]
AVERAGE = {"average": {"decay": 0.7, "start": 0.3}}
# So high a rate that the selection loss turns within the few steps.
TURNING = {"learning_rate": 2e-2, "schedule": "constant", "warmup_ratio": 0.0, "max_steps": 6, "max_grad_norm": None}
BEST = {"every": 1, "export": "best"}
MUON = {"type": "muon", "muon_learning_rate": 0.02, "weight_decay": 0.1}
CASES: dict[str, dict[str, Any]] = {
    **{f"average{stage}": {"zero_stage": stage, "optimizer": AVERAGE} for stage in (0, 1, 2, 3)},
    "average2-bf16": {"zero_stage": 2, "precision": "bf16", "optimizer": AVERAGE},
    **{f"best{stage}": {"zero_stage": stage, "selection": BEST, "optimizer": {}} for stage in (0, 3)},
    "best2-average": {"zero_stage": 2, "selection": BEST, "optimizer": AVERAGE},
    "patient3": {"zero_stage": 3, "selection": {"every": 1, "patience": 2}, "optimizer": {}},
    **{f"muon{stage}": {"zero_stage": stage, "optimizer": MUON} for stage in (0, 1, 2, 3)},
}
RESUMED = ["average0", "best3", "best2-average", "muon2", "muon3"]
MOVED = ["average0", "best2-average", "average3"]  # the latter two cost a conversion each: seconds


def spec_of(folder: Path, name: str, prefix: str = "", **changes: Any) -> TrainSpec:
    return make_spec(folder, prefix + name, **TURNING, **CASES[name], **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings of this file: undisturbed; stopped after three steps and gone on, with as many ranks and with fewer."""
    folder = tmp_path_factory.mktemp("chooses")
    again, robbed = [spec_of(folder, name, "again-") for name in RESUMED], spec_of(folder, "best3", "robbed-")
    for specs, num_ranks, num_steps in (
        ([spec_of(folder, name) for name in CASES], 2, None),
        ([*again, robbed, *(spec_of(folder, name, "moved-") for name in MOVED)], 2, 3),
        ([*again, robbed], 2, None),
        ([spec_of(folder, name, "moved-", num_ranks=1) for name in MOVED], 1, None),
    ):
        for code, output in train_on_ranks(folder, specs, num_ranks, num_steps):
            assert code == 0, output
            (folder / "said").open("a").write(output)
        shutil.rmtree(Path(robbed.output) / "best", ignore_errors=True)
    return folder


def plain(spec: TrainSpec) -> tuple[list[State], list[float]]:
    """The training in this process, of nothing but torch: the weights and the selection loss before the first and after each step."""
    import torch
    from transformers import AutoModelForCausalLM

    train, rows = spec.train, load_rows(Path(spec.rows))
    course, selection = Course(rows.lengths, rows.parts, train, spec.seed), selection_rows(Path(spec.output).parent)
    model = AutoModelForCausalLM.from_pretrained(spec.model).train()
    is_muon = train.optimizer.type == "muon"
    named = dict(model.named_parameters())
    chosen = {name for name, value in named.items() if is_muon and value.dim() == 2 and "embed" not in name}
    others = [
        {
            "params": [v for n, v in named.items() if n not in chosen and (v.dim() > 1) == decays],
            "weight_decay": decays * train.optimizer.weight_decay,
        }
        for decays in (True, False)
    ]
    adam = torch.optim.AdamW(others, lr=train.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    momenta = {name: torch.zeros_like(named[name]) for name in chosen}
    states, losses = [], []

    def look() -> None:
        states.append({name: value.detach().clone() for name, value in named.items()})
        with torch.no_grad():
            losses.append(float(nll(model, selection, range(len(selection)))))

    look()
    for step in range(TURNING["max_steps"]):
        model.zero_grad()
        nll(model, rows, course.step(step).rows).backward()
        adam.step()
        with torch.no_grad():
            for name in chosen:
                muon_step(named[name], momenta[name])
        look()
    return states, losses


def selection_rows(folder: Path) -> Any:
    path = make_spec(folder, "looks", selection=BEST).selection_rows
    assert path is not None
    return load_rows(Path(path))


def nll(model: Any, rows: Any, numbers: Any) -> Any:
    import torch

    batch = collate_padded([rows.row(int(number)) for number in numbers], 0)
    logits, targets = model(input_ids=torch.from_numpy(batch.input_ids)).logits[:, :-1], torch.from_numpy(batch.labels[:, 1:])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def muon_step(weight: Any, momentum: Any) -> None:
    """One step as in github.com/KellerJordan/Muon: Nesterov momentum, five Newton-Schulz iterations in bf16."""
    momentum.mul_(0.95).add_(weight.grad, alpha=0.05)
    update = (0.05 * weight.grad + 0.95 * momentum).bfloat16()
    tall = update.shape[0] > update.shape[1]
    update = update.T if tall else update
    update = update / (update.norm() + 1e-7)
    for _ in range(5):
        gram = update @ update.T
        update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
    update = (update.T if tall else update) * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
    weight.mul_(1 - 0.02 * 0.1).sub_(update.float(), alpha=0.02)


@pytest.fixture(scope="module")
def adamw(folder: Path) -> tuple[list[State], list[float]]:
    return plain(spec_of(folder, "average2"))


def averaged(states: list[State], decay: float, first: int) -> State:
    """The closed form of the average of the states after steps `first` (from 1) and later, in fp64."""
    states = states[first:]
    shares = [decay ** (len(states) - 1 - number) for number in range(len(states))]
    return {name: sum(w * s[name].double() for w, s in zip(shares, states, strict=True)) / sum(shares) for name in states[0]}


def difference(one: State, other: State) -> float:
    """The mean absolute difference of two states."""
    assert one.keys() == other.keys()
    size = sum(value.numel() for value in one.values())
    return float(sum((one[name].double() - other[name].double()).abs().sum() for name in one) / size)


def metrics(folder: Path, name: str, key: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def result_of(folder: Path, name: str) -> TrainResult:
    result = TrainResult.load(folder / name)
    assert result is not None
    return result


@pytest.mark.parametrize("name", ["average0", "average1", "average2", "average3", "again-average0", "moved-average0"])
def test_the_exported_average_is_the_closed_form(folder: Path, adamw: Any, name: str) -> None:
    states, _ = adamw
    found = weights(make_spec(folder, name))
    # 0.3 * 6 steps, rounded down, go before.
    assert difference(found, averaged(states, 0.7, 2)) < 2e-6
    assert difference(found, states[-1]) > 1e-4
    assert result_of(folder, name).exported_step == 6


@pytest.mark.parametrize("name", ["average0", "average2", "average3", "again-average0", "moved-average3"])
def test_the_update_ratios_are_those_of_the_whole_weights(folder: Path, adamw: Any, name: str) -> None:
    states, _ = adamw
    rows = [json.loads(line) for line in (folder / name / "update_ratios.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, before, after in zip(rows, states, states[1:], strict=False):
        squares: dict[str, list[float]] = {}
        for key, old in before.items():
            block = re.match(r"model\.layers\.\d+", key)
            sums = squares.setdefault(block[0] if block else key.removesuffix(".weight"), [0.0, 0.0])
            sums[0] += float((after[key] - old).double().square().sum())
            sums[1] += float(old.double().square().sum())
        assert row["layers"] == pytest.approx({layer: math.sqrt(moved / old) for layer, (moved, old) in squares.items()}, rel=1e-4)
    assert metrics(folder, name, "update_ratio/max") == [max(row["layers"].values()) for row in rows]
    assert "train.learning_rate=0.02 looks too high: try about" in (folder / "said").read_text()


def test_under_bf16_the_average_is_of_the_master_weights(folder: Path, adamw: Any) -> None:
    import torch

    expected = averaged(adamw[0], 0.7, 2)
    found = weights(make_spec(folder, "average2-bf16"))
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert difference(found, expected) < 2e-3


@pytest.mark.parametrize("name", ["best0", "best3", "again-best3"])
def test_the_weights_with_the_lowest_selection_loss_are_exported(folder: Path, adamw: Any, name: str) -> None:
    states, losses = adamw
    best = min(range(1, 7), key=lambda step: losses[step])
    assert 1 < best < 6, "the loss must turn, or this shows nothing"
    assert metrics(folder, name, "selection/loss") == pytest.approx(losses, rel=1e-5)
    assert result_of(folder, name).exported_step == best
    assert difference(weights(make_spec(folder, name)), states[best]) < 2e-6
    assert not (folder / name / "best").exists()


def test_with_an_average_the_average_is_evaluated_and_chosen(folder: Path, adamw: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    states, _ = adamw
    candidates = [*states[:2], *(averaged(states[: step + 1], 0.7, 2) for step in range(2, 7))]
    selection = selection_rows(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    losses = []
    for state in candidates:
        model.load_state_dict(state, strict=False)
        with torch.no_grad():
            losses.append(float(nll(model, selection, range(len(selection)))))
    assert metrics(folder, "best2-average", "selection/loss") == pytest.approx(losses, rel=1e-5)
    best = min(range(1, 7), key=lambda step: losses[step])
    assert result_of(folder, "best2-average").exported_step == best
    assert difference(weights(make_spec(folder, "best2-average")), candidates[best]) < 2e-6


def test_evaluating_an_average_leaves_the_training_as_it_was(folder: Path) -> None:
    assert metrics(folder, "best2-average", "loss") == metrics(folder, "average2", "loss")


def test_a_training_without_gain_ends_and_says_why(folder: Path, adamw: Any) -> None:
    states, losses = adamw
    best = min(range(1, 7), key=lambda step: losses[step])
    result = result_of(folder, "patient3")
    assert (result.steps, result.exported_step, result.ended) == (best + 2, best + 2, "no gain on selection")
    assert result_of(folder, "best3").ended == "all steps"
    assert difference(weights(make_spec(folder, "patient3")), states[best + 2]) < 2e-6


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_and_resumed_it_ends_in_the_same_bits(folder: Path, name: str) -> None:
    one, again = (Path(folder / prefix / "model" / "model.safetensors").read_bytes() for prefix in (name, f"again-{name}"))
    assert one == again
    assert metrics(folder, name, "selection/loss") == metrics(folder, f"again-{name}", "selection/loss")


@pytest.mark.parametrize("name", MOVED)
def test_another_number_of_ranks_goes_on_with_the_average_and_the_best(folder: Path, name: str) -> None:
    assert difference(weights(make_spec(folder, name)), weights(make_spec(folder, f"moved-{name}"))) < 2e-6


def test_best_weights_that_are_gone_are_missed_before_the_training_goes_on(folder: Path) -> None:
    for rank in (0, 1):
        message = (folder / f"robbed-best3.error{rank}").read_text()
        assert "best/step-00000002 is gone, the weights with the best selection loss so far; restore it, or remove" in message


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_muon_is_plain_muon(folder: Path, stage: int) -> None:
    states, _ = plain(spec_of(folder, f"muon{stage}"))
    # Its matrices are of bf16: a last bit of a gradient becomes one of 256 of an update, and the next gradients are others.
    assert difference(weights(make_spec(folder, f"muon{stage}")), states[-1]) < 0.02 * difference(states[0], states[-1])

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from w2sr.errors import UserError
from w2sr.training.config import TrainConfig
from w2sr.training.spec import TrainResult, TrainSpec
from w2sr.training.watch import forget_steps_from


def spec() -> TrainSpec:
    return TrainSpec("all-seed0", 0, TrainConfig(max_steps=2), "model", "digest", "rows", "out")


def test_a_spec_survives_json() -> None:
    assert TrainSpec.from_json(spec().to_json(), "here") == spec()


def test_a_spec_with_an_unknown_or_missing_key_is_refused() -> None:
    values = json.loads(spec().to_json())
    with pytest.raises(UserError, match=r"spec.json: key 'sed' .*did you mean 'seed'"):
        TrainSpec.from_json(json.dumps({**values, "sed": 1}), "spec.json")
    del values["rows"]
    with pytest.raises(UserError, match="key 'rows' is unknown or missing"):
        TrainSpec.from_json(json.dumps(values), "spec.json")


def test_a_spec_that_is_not_json_is_refused() -> None:
    with pytest.raises(UserError, match=r"spec.json is not valid JSON"):
        TrainSpec.from_json("{", "spec.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop_by": "2026-12-01T06:00:00"}, r"stop_by is '2026-12-01T06:00:00'; give a time with its zone"),
        ({"stop_by": "tomorrow"}, r"stop_by is 'tomorrow'; give a time with its zone, such as .*, or null"),
        ({"train": {"learning_rte": 1, "max_steps": 1}}, r"train: unknown key 'learning_rte': did you mean 'learning_rate'"),
        ({"train": {"max_steps": 0}}, r"train.max_steps: Input should be greater than 0 \(given: 0\)"),
        ({"seed": "x"}, r"seed is 'x'; give a whole number"),
        ({"rows": 3}, r"rows is 3; give a text"),
    ],
)
def test_a_spec_that_a_hand_has_spoilt_is_refused_by_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"spec.json: {message}"):
        TrainSpec.from_json(json.dumps({**json.loads(spec().to_json()), **change}), "spec.json")
    with pytest.raises(UserError, match=r"spec.json is no JSON object but 5"):
        TrainSpec.from_json("5", "spec.json")


def test_a_spec_s_identity_is_of_all_that_decides_the_weights_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2sr.training.spec.rows_digest", str)
    changes = ({"model_digest": "other"}, {"seed": 1}, {"rows": "other"}, {"train": TrainConfig(max_steps=3)})
    assert len({spec().identity(), *(dataclasses.replace(spec(), **change).identity() for change in changes)}) == 5
    for change in ({"name": "other"}, {"output": "other"}, {"model": "moved"}, {"stop_by": "2026-12-01T06:00:00+00:00"}):
        assert dataclasses.replace(spec(), **change).identity() == spec().identity()


def test_there_is_no_result_before_the_training_is_finished(tmp_path: Path) -> None:
    assert TrainResult.load(tmp_path) is None
    result = TrainResult(2, 20, 10, 0.5, 0.75, ((1, 2), (2, 1)), 2, "all steps")
    (tmp_path / "result.json").write_text(result.to_json())
    assert TrainResult.load(tmp_path) == result


def test_metrics_past_the_checkpoint_and_torn_lines_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(5)) + '{"step": 5, "lo')
    forget_steps_from(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    forget_steps_from(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize(("arguments", "message"), [([], "give one argument"), (["nowhere.json"], "no spec file nowhere.json")])
def test_the_command_refuses_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from w2sr.training.__main__ import main

    assert main(arguments) == 2
    assert message in capsys.readouterr().err

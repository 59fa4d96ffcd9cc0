"""What was predicted of a training is written beside what happened, and `w2sr plan RUN_DIR` shows both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from tests.distributed.test_stage_train import forked, make_run  # noqa: F401 - a fixture
from w2sr.config import dump_config
from w2sr.packing.rows import Row
from w2sr.planning.actual import FILE, record
from w2sr.stages import train as stage
from w2sr.training.data import save_rows
from w2sr.training.spec import TrainResult, TrainSpec


def test_the_stage_writes_both_and_the_command_shows_them(
    tmp_path: Path,
    forked: list[list[str]],  # noqa: F811, ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path, arms=["all"], keep_checkpoints=True, zero_stage=2)
    (tmp_path / "config.yaml").write_text(dump_config(run.config))
    assert main(["plan", str(tmp_path)]) == 2
    assert "no finished student yet" in capsys.readouterr().err
    stage.run(run)
    folder = run.stage("train", "all-seed0")
    values = json.loads((folder / FILE).read_text())
    predicted, actual = values["predicted"], values["actual"]
    # The libraries are nearly all of it here: what is compared is that both are sizes of a process.
    assert 0.3 < predicted["memory_bytes"] / actual["memory_bytes"] < 3
    assert actual["seconds"] == TrainResult.load(folder).seconds  # type: ignore[union-attr]
    # Beside the numbers files hold their headers, the tokenizer and DeepSpeed's bookkeeping, which is not small against 20,000 parameters.
    assert predicted["disk_bytes"] < actual["disk_bytes"] < 3 * predicted["disk_bytes"]
    assert main(["plan", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "GiB a rank: predicted" in shown
    assert "all-seed0" in shown
    assert main(["plan", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all-seed0"] == values
    assert main(["plan", str(tmp_path), "train.zero_stage=3"]) == 2
    assert "takes no overrides" in capsys.readouterr().err
    spec = TrainSpec.from_json((folder / "spec.json").read_text(), "spec")
    config = Path(spec.model) / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"perceptron"'))
    save_rows(Path(spec.rows), [Row("e0", "p0", (1, 2, 3), 1)])  # the stage has removed its own
    record(spec, TrainResult.load(folder))  # type: ignore[arg-type]
    unknown = json.loads((folder / FILE).read_text())
    assert unknown["predicted"] is None
    assert "perceptron" in unknown["note"]
    assert unknown["actual"] == actual

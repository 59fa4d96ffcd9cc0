"""How much there is to do, what was measured of it, and what it leaves on disk."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.test_plan import write_config
from w2sr.artifacts import MANIFEST, StageDir
from w2sr.config import dump_config, load_config
from w2sr.planning.assumptions import Assumptions
from w2sr.planning.plan import Item, Plan, make_plan
from w2sr.planning.shapes import config_folder, shape_of
from w2sr.planning.workload import training_of
from w2sr.run import Run
from w2sr.training.spec import RESULT, TrainResult, TrainSpec

MIXTURE = "train.mixtures=[{name: blend, parts: {correct: 0.7, gold: 0.3}}]"


def finish(folder: Path, counts: dict[str, int], usage: dict[str, float]) -> None:
    stage = StageDir(folder, "stage", {}, {})
    stage.begin()
    stage.finish(counts, [], usage)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration whose run is finished: 7 tokens/s of each replica and rank, 50 tokens an answer."""
    path = write_config(tmp_path)
    config = load_config(path)
    run = Run(config, Path(config.run_dir), nullcontext)
    finish(run.stage("generate", "weak"), {"traces": 2}, {"tokens": 100, "device_seconds": 100 / 7})
    finish(run.stage("evaluate", "test", "base"), {"samples": 2}, {"tokens": 100, "device_seconds": 100 / 7})
    student = run.stage("train", "all-seed0")
    finish(student, {"kept": 2}, {"tokens": 100, "device_seconds": 100 / 7})
    model = str(config_folder(config.student.model))
    (student / "spec.json").write_text(TrainSpec("all-seed0", 0, config.train, model, "digest", "rows", str(student)).to_json())
    (student / RESULT).write_text(TrainResult(1, 100, 90, 1.0, 1.0, ((1, 8),), 1, "all steps").to_json())
    (run.folder / "config.yaml").write_text(dump_config(config))
    return path


def plan(path: Path, *overrides: str) -> Plan:
    config = load_config(path, list(overrides))
    return make_plan(Run(config, Path(config.run_dir), nullcontext), Assumptions())


def lines(path: Path, *overrides: str) -> dict[str, Item]:
    return {f"{item.stage} {item.name}": item for item in plan(path, *overrides).items}


def test_what_is_asked_for_again_takes_what_it_took(path: Path) -> None:
    found = lines(path)
    for name in ("generate teacher weak", "train 2 students", "evaluate base and 2 more"):
        assert (found[name].basis, found[name].rate) == ("measured", pytest.approx(7))
    assert found["generate teacher weak"].tokens == 40_000 * 50
    assert found["evaluate teacher-weak"].basis == "assumed"  # it has not answered yet


@pytest.mark.parametrize(
    "override",
    [
        "train.precision=fp32",
        "train.zero_stage=3",
        "train.num_ranks=16",
        "train.use_gpu=false",
        "train.max_length=4096",
        "student.model={folder}/weak-1.5b",
    ],
)
def test_a_student_of_another_layout_takes_assumed_time(path: Path, override: str) -> None:
    assert lines(path, override.format(folder=path.parent))["train 2 students"].basis == "assumed"


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("generate", "teachers.0.model={folder}/strong-7b"),
        ("generate", "teachers.0.pool.gpus_per_replica=0"),
        ("generate", "teachers.0.engine.dtype=float32"),
        ("evaluate", "student.model={folder}/weak-1.5b"),
        ("evaluate", "evaluate.pool.gpus_per_replica=0"),
        ("evaluate", "evaluate.engine={{kind: hf}}"),
    ],
)
def test_others_who_answer_take_assumed_time_and_keep_the_lengths(path: Path, stage: str, override: str) -> None:
    item = next(each for each in plan(path, override.format(folder=path.parent)).items if each.stage == stage)
    assert item.basis == "assumed"
    if stage == "generate":
        assert item.tokens == 40_000 * 50


def test_a_run_folder_whose_configuration_cannot_be_read_any_more_measures_lengths_only(path: Path) -> None:
    (path.parent / "run" / "config.yaml").write_text("title: [")
    (path.parent / "run" / "train" / "all-seed0" / "spec.json").write_text("{}")
    assert {item.basis for item in plan(path).items} == {"assumed"}


def test_a_mixture_has_the_rows_of_its_arms(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    config = load_config(path, ["curate.arms=[correct, gold]", MIXTURE])
    folder = Path(config.run_dir)
    bounded = training_of(config, "blend", folder, 1000.0)
    assert (bounded.rows, bounded.known) == (50_000 + 10_000, False)  # correct: all traces of both teachers
    assert lines(path, "curate.arms=[correct, gold]", MIXTURE)["train 3 students"].notes == [
        "rows not known yet, every trace counted: correct, gold, blend"
    ]
    (folder / "curate").mkdir(parents=True)
    (folder / "curate" / MANIFEST).write_text("{}")
    pq.write_table(pa.table({"n": range(30)}), folder / "curate" / "correct.parquet")
    assert training_of(config, "blend", folder, 1000.0).known is False
    pq.write_table(pa.table({"n": range(12)}), folder / "curate" / "gold.parquet")
    counted = training_of(config, "blend", folder, 1000.0)
    assert (counted.rows, counted.known) == (42, True)


def test_answers_under_bans_are_counted(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    plain, banned = (lines(path, *more)["evaluate base and 2 more"].tokens for more in ([], ["evaluate.engine.kind=vllm", BAN]))
    # Three models answer unbanned; both students under the ban, and under its control.
    assert banned == pytest.approx(plain * (3 + 2 * 2) / 3)


BAN = "evaluate.bans=[{name: b, words: [wait]}]"


def disk(path: Path, *overrides: str) -> dict[str, float]:
    return plan(path, *overrides).disk


def test_disk_is_an_upper_bound(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    number = shape_of("x", config_folder(str(tmp_path / "strong-7b"))).num_parameters
    plain = disk(path)
    assert plain["exported students"] == 2 * 2 * number
    assert disk(path, "train.export.precision=fp32")["exported students"] == 2 * 4 * number
    # Rows are written whole, however few steps look at them.
    assert disk(path, "train.epochs=null", "train.max_steps=1")["rows"] == plain["rows"] > 0
    best = disk(path, "train.selection={every: 5, export: best}")
    assert best["best weights"] == 3 * 4 * number
    assert "best weights" not in plain


def test_a_run_takes_no_assumptions(path: Path, capsys: Any) -> None:
    from launcher.cli import main

    assert main(["plan", str(path.parent / "run"), "--gpu-memory-gb", "40"]) == 2
    assert "takes no overrides or assumptions (given: --gpu-memory-gb)" in capsys.readouterr().err
    for option, value in (("--efficiency", "7"), ("--answer-share", "3"), ("--gpu-memory-gb", "inf"), ("--tflops", "nan"), ("--gpus", "0")):
        assert main(["plan", str(path), option, value]) == 2
        assert f"{option}={value}: give a" in capsys.readouterr().err

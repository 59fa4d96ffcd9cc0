"""Rows that come in waves while ranks train: they wait together, and the bits are those of a training that had all rows at its start."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.ranks import Rank, make_spec, random_rows, started, steps_logged, write_spec
from w2sr.training.data import ROWS, WAVES, save_rows, write_waves
from w2sr.training.spec import TrainSpec

# Steps have 16 rows: the first one spans two waves, the second three, and the third begins the second pass.
SIZES = (10, 12, 18)
STEPS = 6


def model_bytes(spec: TrainSpec) -> bytes:
    return (Path(spec.output) / "model" / "model.safetensors").read_bytes()


def spec_of(folder: Path, name: str, num_waves: int) -> TrainSpec:
    """A training whose first `num_waves` waves are there."""
    average = {"optimizer": {"average": {"decay": 0.9}}, "selection": {"every": 2}}
    spec = make_spec(folder, name, max_steps=STEPS, zero_stage=2, checkpoint_every=100, **average)
    spec = dataclasses.replace(spec, rows=str(folder / f"{name}{WAVES}"))
    come(spec, num_waves)
    return spec


def come(spec: TrainSpec, num_waves: int) -> None:
    """Let the first `num_waves` waves be there."""
    folder, paths, rows = Path(spec.rows).parent, list[Path](), random_rows(sum(SIZES), seed=0)
    for wave in range(num_waves):
        path = folder / f"wave{wave}{ROWS}"
        if not path.exists():
            first = sum(SIZES[:wave])
            save_rows(path, rows[first : first + SIZES[wave]])
        paths.append(path)
    write_waves(Path(spec.rows), len(SIZES), paths)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """The training that has all waves at its start."""
    spec = spec_of(tmp_path_factory.mktemp("waves"), "calm", len(SIZES))
    with started("w2sr.training", str(write_spec(spec))) as ranks:
        for rank in ranks:
            code, output = rank.finish()
            assert code == 0, output
            assert "waits for its rows" not in output
    return spec


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def waits(rank: Rank, step: int) -> bool:
    return f"step {step} waits for its rows" in rank._output.read_text()


def saved(spec: TrainSpec) -> list[str]:
    return sorted(path.parent.name for path in (Path(spec.output) / "checkpoints").glob("step-*/complete.json"))


def test_waves_that_come_while_ranks_wait_change_no_bit(calm: TrainSpec) -> None:
    spec = spec_of(Path(calm.rows).parent, "late", 1)
    with started("w2sr.training", str(write_spec(spec))) as ranks:
        until(lambda: waits(ranks[0], 1))
        time.sleep(1.5)  # some more rounds
        come(spec, 2)
        until(lambda: waits(ranks[0], 2))
        assert steps_logged(spec) == [1]
        come(spec, 3)
        for rank in ranks:
            code, output = rank.finish()
            assert code == 0, output
            assert output.count("waits for its rows") == (2 if rank is ranks[0] else 0)
    assert model_bytes(spec) == model_bytes(calm)
    assert steps_logged(spec) == list(range(1, STEPS + 1))


def test_a_training_that_ends_while_it_waits_goes_on_in_the_same_bits(calm: TrainSpec) -> None:
    spec = spec_of(Path(calm.rows).parent, "ended", 1)
    path = str(write_spec(spec))
    with started("w2sr.training", path) as ranks:
        until(lambda: waits(ranks[0], 1))
        (Path(spec.output) / "stop").touch()
        assert [rank.finish()[0] for rank in ranks] == [143, 143]
    assert not saved(spec)  # nothing was done
    assert not (Path(spec.output) / "stop").exists()
    come(spec, 2)
    with started("w2sr.training", path) as ranks:
        until(lambda: saved(spec) == ["step-00000001"])
        for rank in ranks:
            rank.kill()
    come(spec, 1)  # whoever gives the waves begins with the first again
    late = dataclasses.replace(spec, stop_by="2020-01-01T00:00:00+00:00")
    with started("w2sr.training", str(write_spec(late))) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 75, output
            assert "ended: saved after step 1 of 6, before stop_by" in output
    assert saved(spec) == ["step-00000001"]
    come(spec, 3)
    with started("w2sr.training", str(write_spec(spec))) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 0, output
    assert model_bytes(spec) == model_bytes(calm)
    assert steps_logged(spec) == list(range(1, STEPS + 1))

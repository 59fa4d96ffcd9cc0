"""A training whose ranks stand still: it says who, goes on, and leaves numbers and a profile."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import make_spec, started, steps_logged, wait_for_step, write_spec
from w2sr.training.spec import TrainSpec

NUM_STEPS = 12


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSpec, str]:
    """A training of two ranks; rank 1 is late with its data in step 4, and in step 6 its process is stopped for a while."""
    watch = {"step_timeout_s": 2, "profile": {"steps": [2, 3]}, "peak_flops": 1e12}
    spec = make_spec(tmp_path_factory.mktemp("watched"), "late", max_steps=NUM_STEPS, asynchronous_checkpoints=True, watch=watch)
    path = write_spec(spec)
    path.with_suffix(".order").write_text('"stand still"')
    said = Path(spec.output) / "stalls" / "said.txt"
    with started("tests.distributed.kills", str(path)) as ranks:
        wait_for_step(spec, 5)
        deadline = time.monotonic() + 90
        while "no sign of rank 1" not in said.read_text():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        os.kill(int((Path(spec.output) / "stopped").read_text()), signal.SIGCONT)
        ends = [rank.finish() for rank in ranks]
    assert [code for code, _ in ends] == [0, 0], ends
    return spec, ends[0][1] + ends[1][1]


def test_a_rank_that_is_late_with_its_data_is_named_by_the_one_that_waits(watched: tuple[TrainSpec, str]) -> None:
    spec, output = watched
    line = re.search(r"^step 4 takes \d+ s so far: rank 1 at work in .*; rank 0 waits in .*\. Stacks: .*stalls$", output, re.MULTILINE)
    assert line, output
    assert "tests/distributed/kills.py" in line.group()
    stacks = [(Path(spec.output) / "stalls" / f"step-4.rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "w2sr/training/loop.py" in stacks[0]
    assert "tests/distributed/kills.py" in stacks[1]
    assert f"rank 1 on {os.uname().nodename}, process " in stacks[1]


def test_a_rank_whose_process_is_stopped_is_named_and_the_training_goes_on_when_it_comes_back(watched: tuple[TrainSpec, str]) -> None:
    spec, output = watched
    said = (Path(spec.output) / "stalls" / "said.txt").read_text()
    assert re.search(
        r"^step \d+ takes \d+ s so far: no sign of rank 1 \(stopped, swapped out, or on a lost node\); rank 0 waits in", said, re.M
    )
    assert re.search(r"^step 4 went on after \d+ s$", said, re.MULTILINE)
    assert all(line in output for line in said.splitlines())
    assert steps_logged(spec) == list(range(1, NUM_STEPS + 1))


def test_the_numbers_of_a_step_say_how_fast_it_was_and_what_it_waited_for(watched: tuple[TrainSpec, str]) -> None:
    spec, _ = watched
    rows = [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(2 * row["tokens_per_s_per_device"], rel=1e-2, abs=0.2)
        assert 0 <= row["mfu"] < 0.1  # of 1e12: the tiny model does some 1e9 a second
        assert 0.05 < row["peak_memory_gb"] < 20
    assert rows[3]["data_wait_s"] > 2 > rows[1]["data_wait_s"]  # rank 1's, though rank 0 writes
    assert [row["step"] for row in rows if "checkpoint_stall_s" in row and row["checkpoint_stall_s"] > 0]


def test_the_profile_of_each_rank_holds_the_steps_asked_for(watched: tuple[TrainSpec, str]) -> None:
    spec, _ = watched
    for rank in (0, 1):
        with gzip.open(Path(spec.output) / "profile" / f"rank-{rank}.json.gz", "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        steps = {event["name"]: event for event in events if event["name"].startswith("step ") and event.get("ph") == "X"}
        assert sorted(steps) == ["step 2", "step 3"]
        first = steps["step 2"]
        inside = [event for event in events if event.get("ph") == "X" and first["ts"] <= event["ts"] < first["ts"] + first["dur"]]
        assert any(event["name"] in ("aten::mm", "aten::addmm", "aten::linear") for event in inside)

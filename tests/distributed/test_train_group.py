"""The same training under a real local Ray: a rank that dies, a rank that refuses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from cluster import train_group
from cluster.config import ClusterSpec
from cluster.session import ray_session
from cluster.train_group import GroupError, GroupSpec, run_group
from tests.distributed.ranks import make_spec, renamed, steps_logged, train_on_ranks
from w2sr.training.spec import TrainSpec


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        with ray_session(ClusterSpec(num_cpus=2, num_gpus=0)):
            yield


def group(folder: Path, max_failures: int = 1) -> GroupSpec:
    return GroupSpec(sizes=(2,), cpus_per_rank=1, use_gpu=False, max_failures=max_failures, work_dir=folder / "group")


def train_and_die_once(specs: list[str]) -> None:
    """What a rank runs: rank 1 is killed when the first student has logged its third step, but only in the first attempt."""
    from w2sr.training.loop import train_each

    first = TrainSpec.from_json(specs[0], "test")
    if os.environ["RANK"] == "1" and not Path(first.output).with_suffix(".died").exists():
        threading.Thread(target=_die_after_three_steps, args=(Path(first.output),), daemon=True).start()
    train_each(specs)


def _die_after_three_steps(output: Path) -> None:
    path = output / "metrics.jsonl"
    while not path.exists() or '"step": 3,' not in path.read_text():
        time.sleep(0.005)
    output.with_suffix(".died").touch()
    os.kill(os.getpid(), 9)


@pytest.mark.usefixtures("ray")
def test_a_group_whose_rank_dies_goes_on_and_gives_the_bits_of_torchrun(tmp_path: Path) -> None:
    calm = make_spec(tmp_path, "calm", max_steps=20)
    for code, output in train_on_ranks(tmp_path, [calm]):
        assert code == 0, output
    specs = [renamed(calm, name) for name in ("first", "second")]
    polls, said = list[float](), list[str]()
    run_group(train_and_die_once, [spec.to_json() for spec in specs], group(tmp_path), lambda: polls.append(time.monotonic()), said.append)
    assert Path(specs[0].output).with_suffix(".died").exists()
    for spec in specs:
        exported = (Path(spec.output) / "model" / "model.safetensors").read_bytes()
        assert exported == (Path(calm.output) / "model" / "model.safetensors").read_bytes()
        assert steps_logged(spec) == list(range(1, 21))
    assert len(polls) > 3
    assert [line for line in said if line.endswith("; starting again from the last checkpoint (1 of 1 restarts)")] == said[:1]
    assert not (tmp_path / "group").exists()


def refuse(folder: str) -> None:
    """Rank 1 finds the user's mistake; rank 0 waits for it."""
    with open(Path(folder) / f"attempts{os.environ['RANK']}", "a") as file:
        file.write("x")
    if os.environ["RANK"] == "1":
        raise ValueError("learning_rate=7 is too much; give less")
    time.sleep(60)


@pytest.mark.usefixtures("ray")
def test_a_users_mistake_on_a_rank_arrives_as_its_message_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=r"^learning_rate=7 is too much; give less$"):
        run_group(refuse, str(tmp_path), group(tmp_path, max_failures=3), lambda: None, print)
    assert (tmp_path / "attempts1").read_text() == "x"


class WorkerGroupError(RuntimeError):
    """As Ray Train's: it carries what each rank failed with."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        self.worker_failures = failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            WorkerGroupError({0: RuntimeError("gloo\nConnection closed by peer"), 1: RuntimeError("Traceback\nOSError: the disk is gone")}),
            r"rank 1 of 2 failed: OSError: the disk is gone; that is more often than max_failures=2 allows\. Run the same command again",
        ),
        (TimeoutError("no processors"), "the group of 2 ranks could not run: no processors"),
    ],
)
def test_ranks_that_keep_failing_are_named_with_their_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fit(*_: object) -> None:
        raise error

    said = list[str]()
    monkeypatch.setattr("cluster.train_group._fit", fit)
    monkeypatch.setattr("cluster.train_group._free_leftovers", lambda: None)
    monkeypatch.setattr("cluster.train_group._find_room", lambda *_, **__: 2)
    with pytest.raises(GroupError, match=message):
        run_group(refuse, "", group(tmp_path, max_failures=2), lambda: None, said.append)
    assert len(said) == (2 if isinstance(error, WorkerGroupError) else 0)
    assert not (tmp_path / "group").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The actor died because its node has died. Node Id: 7\nguesses", "rank 0 of 2 failed: its node was lost"),
        (
            "The actor is dead because its worker process has died.\nguesses",
            "rank 0 of 2 failed: its process was killed (is the memory full?)",
        ),
        ("CUDA out of memory", "rank 0 of 2 failed: CUDA out of memory"),
    ],
)
def test_a_death_is_said_in_one_line(text: str, said: str) -> None:
    assert train_group._first_failure(WorkerGroupError({0: RuntimeError(text)}), 2).startswith(said)


def test_a_group_whose_room_was_taken_looks_for_another_and_no_restart_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WorkerGroupStartupTimeoutError(Exception):
        pass

    class ControllerError(Exception):
        controller_failure = WorkerGroupStartupTimeoutError("2 workers")

    sizes, started = iter([2, 1]), list[int]()

    def fit(*arguments: object) -> None:
        started.append(arguments[3])  # type: ignore[arg-type]
        if len(started) == 1:
            raise ControllerError

    monkeypatch.setattr("cluster.train_group._fit", fit)
    monkeypatch.setattr("cluster.train_group._free_leftovers", lambda: None)
    monkeypatch.setattr("cluster.train_group._find_room", lambda *_, **__: next(sizes))
    run_group(refuse, "", group(tmp_path, max_failures=0), lambda: None, lambda _: None)
    assert started == [2, 1]


@pytest.mark.usefixtures("ray")
def test_room_that_a_failed_start_did_not_give_back_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import placement_group  # not before the session is open

    class ControllerError(Exception):
        controller_failure = RuntimeError("connectFullMesh")

    started, said = list[int](), list[str]()

    def fit(*arguments: object) -> None:
        started.append(arguments[3])  # type: ignore[arg-type]
        if len(started) == 1:
            # As Ray Train does when gloo does not come up: the ranks' room stays taken after the controller has gone.
            assert placement_group([{"CPU": 1}] * 2).wait(30)
            raise ControllerError

    monkeypatch.setattr("cluster.train_group._fit", fit)
    run_group(refuse, "", group(tmp_path), lambda: None, said.append)
    assert started == [2, 2]
    assert "starting again from the last checkpoint" in said[0]


@pytest.mark.parametrize(
    ("room", "before", "size", "said"),
    [
        ([4], 4, 4, []),
        ([4], 2, 4, ["there is room for all 4 ranks again"]),
        ([3, 3, 3], 4, 2, ["no room for 4 ranks in 9 s: going on with 2; 4 are wanted again at the next restart"]),
        # Asked for 4; then 2, 1 and 4 in turn, until two nodes are back.
        ([0, 0, 0, 0, 0, 0, 4], 4, 4, []),
    ],
)
def test_the_largest_size_that_finds_room_is_taken_after_the_wait(room: list[int], before: int, size: int, said: list[str]) -> None:
    asked = list[tuple[int, float | None]]()

    class Wait:
        def __init__(self, spec: GroupSpec) -> None:
            self.spec, self.room, self.say = spec, iter(room), lines.append

        def stopping(self) -> bool:
            return False

        def for_room(self, size: int, limit_s: float | None) -> bool:
            asked.append((size, limit_s))
            return next(self.room) >= size

    lines = list[str]()
    wait = Wait(GroupSpec((1, 2, 4), 1, False, 0, Path(), wait_s=9))
    assert train_group._find_room(cast("train_group._Wait", wait), before) == size
    assert lines == said
    assert asked[0] == (4, 9)


def test_a_wait_in_which_no_node_holds_a_rank_says_so() -> None:
    wait = train_group._Wait(GroupSpec((2,), 4, True, 0, Path()), lambda: None, print, lambda: False)
    line = "waiting for 8 CPUs and 2 GPUs for 2 ranks; free: 12 of 16 CPUs and 2 of 4 GPUs"
    assert wait._line({"CPU": 16, "GPU": 4}, {"CPU": 12, "GPU": 2}) == f"{line}, but too little on one node for a rank"
    assert wait._line({"CPU": 16, "GPU": 4}, {"CPU": 12}) == line.replace("2 of 4", "0 of 4")


@pytest.mark.usefixtures("ray")
def test_what_the_poll_raises_ends_the_wait(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_group(refuse, str(tmp_path), group(tmp_path), interrupted, print)
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("sizes", [(64,), (32, 64)])
def test_a_stop_ends_the_wait_for_room_and_nothing_is_begun(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    polls = list[float]()
    spec = GroupSpec(sizes, 1, False, 0, tmp_path / "group", wait_s=60)
    run_group(refuse, str(tmp_path), spec, lambda: polls.append(time.monotonic()), print, lambda: len(polls) > 1)
    assert len(polls) == 2
    assert not list(tmp_path.iterdir())


def test_ranks_that_fail_while_it_stops_are_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, said = list[int](), list[str]()

    def fit(*_: object) -> None:
        started.append(1)
        raise WorkerGroupError({0: RuntimeError("the disk is gone")})

    monkeypatch.setattr("cluster.train_group._fit", fit)
    monkeypatch.setattr("cluster.train_group._free_leftovers", lambda: None)
    monkeypatch.setattr("cluster.train_group._find_room", lambda *_, **__: 2)
    run_group(refuse, "", group(tmp_path, max_failures=2), lambda: None, said.append, lambda: bool(started))
    assert started == [1]
    assert said == ["rank 0 of 2 failed: the disk is gone; stopping"]


@pytest.mark.usefixtures("ray")
def test_ranks_under_ray_are_stopped_by_a_file_and_have_saved_when_the_group_ends(tmp_path: Path) -> None:
    from w2sr.training.loop import train_each

    spec = make_spec(tmp_path, "stopped", max_steps=2000, checkpoint_every=5000)
    output = Path(spec.output)

    def on_poll() -> None:
        if (output / "metrics.jsonl").exists() and steps_logged(spec):
            (output / "stop").touch()

    run_group(train_each, [spec.to_json(), renamed(spec, "next").to_json()], group(tmp_path), on_poll, print)
    (saved,) = (output / "checkpoints").iterdir()
    assert (saved / "complete.json").exists()
    assert saved.name == f"step-{steps_logged(spec)[-1]:08d}"
    assert not (output / "result.json").exists()
    assert not (tmp_path / "next").exists()

"""Starts ranks as plain processes (or through torchrun) and makes small trainings for them. Also what the ranks run."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing.forkserver
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.tiny import make_tiny_model
from w2sr.artifacts import model_digest
from w2sr.packing.rows import Row
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.signals import Stop
from w2sr.training.spec import TrainSpec

ROOT = Path(__file__).parents[2]
NUM_ROWS = 40


def make_spec(folder: Path, name: str, **changes: Any) -> TrainSpec:
    """A training of 5 steps with 2 ranks x 4 micro-batches x 2 rows, whose supervised parts are of very different lengths.

    It gets selection rows if it is to look at them more than twice.
    """
    model = folder / "model"
    rows, selection = folder / "made.rows.arrow", folder / "selection.rows.arrow"
    if not rows.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_tiny_model(model, std=0.05)
        save_rows(rows, random_rows(NUM_ROWS, seed=0))
        save_rows(selection, random_rows(9, seed=1))
    values: dict[str, Any] = {
        "num_ranks": 2,
        "max_steps": 5,
        "global_batch_size": 16,
        "micro_batch_size": 2,
        "max_length": 64,
        "packing": False,
        "learning_rate": 3e-3,
        "optimizer": {"weight_decay": 0.1},
        "checkpoint_every": 2,
    }
    train = TrainConfig.model_validate(values | changes)
    watched = str(selection) if train.selection.every else None
    return TrainSpec(name, 3, train, str(model), model_digest(model), str(rows), str(folder / name), watched)


def random_rows(number: int, seed: int) -> list[Row]:
    """Rows of random tokens with a prefix each and supervised parts of very different lengths."""
    rng = random.Random(seed)
    lengths = [(rng.randint(2, 12), rng.choice([1, 2, 3, 40, 50])) for _ in range(number)]
    ids = [(1, *(rng.randint(7, 90) for _ in range(prefix + trace))) for prefix, trace in lengths]
    return [Row(f"e{n}", "p", ids[n], prefix) for n, (prefix, _) in enumerate(lengths)]


def environment(**extra: str) -> dict[str, str]:
    """Environment of a rank: one thread, no model hub, this repository first."""
    keep = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**keep, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **extra}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rank:
    """One rank: a process forked from a server that has torch, transformers and deepspeed loaded already (each start costs 7 s of CPU)."""

    def __init__(self, module: str, argument: str, place: dict[str, str]) -> None:
        self._output = Path(tempfile.mkstemp(prefix="rank-", suffix=".log")[1])
        self._process = _forks().Process(target=_run_rank, args=(module, argument, place, str(self._output)))
        self._process.start()

    def kill(self) -> None:
        self._process.kill()

    def finish(self, timeout_s: float = 300) -> tuple[int, str]:
        """Wait; return exit code and output."""
        self._process.join(timeout_s)
        code, output = self._process.exitcode, self._output.read_text()
        assert code is not None, f"the rank did not end in {timeout_s} s: {output}"
        return code, output

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._output.unlink()


@functools.cache
def _forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with patch.dict(os.environ, environment(), clear=True):
        multiprocessing.forkserver.ensure_running()
    return context


def _run_rank(module: str, argument: str, place: dict[str, str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(place)
    signal.alarm(300)  # a rank that hangs shall not outlive its test
    sys.argv = [module, argument]
    runpy.run_module(module, run_name="__main__")


@contextmanager
def started(module: str, argument: str, world_size: int = 2) -> Iterator[list[Rank]]:
    """Start `python -m MODULE ARGUMENT` on every rank; whatever still runs at the end is killed."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [Rank(module, argument, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world_size)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def train_on_ranks(folder: Path, specs: list[TrainSpec], world_size: int = 2, num_steps: int | None = None) -> list[tuple[int, str]]:
    """Train specs one after another in one group of processes; a refusal of the user's kind ends up in `<name>.error`.

    `num_steps`: each is asked to stop after so many.
    """
    path = folder / "specs.json"
    path.write_text(json.dumps({"specs": [spec.to_json() for spec in specs], "num_steps": num_steps}))
    with started("tests.distributed.ranks", str(path), world_size) as ranks:
        return [rank.finish() for rank in ranks]


def write_spec(spec: TrainSpec) -> Path:
    path = Path(spec.output).with_suffix(".json")
    path.write_text(spec.to_json())
    return path


def wait_for_step(spec: TrainSpec, step: int, timeout_s: float = 90) -> None:
    """Wait until a training has logged `step`."""
    path, deadline = Path(spec.output) / "metrics.jsonl", time.monotonic() + timeout_s
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.01)


def weights(spec: TrainSpec) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(spec.output) / "model" / "model.safetensors"))


def steps_logged(spec: TrainSpec) -> list[int]:
    lines = (Path(spec.output) / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


def main(path: str) -> None:
    """What a rank of `train_on_ranks` does."""
    from w2sr.errors import UserError
    from w2sr.training import engine, loop
    from w2sr.training.dist import leave_group
    from w2sr.training.objective import Objective

    asked = json.loads(Path(path).read_text())
    for text in asked["specs"]:
        spec = TrainSpec.from_json(text, path)
        if asked["num_steps"] is not None:
            loop.stop_requests = functools.partial(stopping_after, asked["num_steps"])
        loop.Objective = exploding(Objective) if spec.name.startswith("exploding") else Objective
        if spec.train.precision == "fp16":
            allow_fp16_on_cpus()
        engine.deepspeed_config = in_sub_groups if spec.name.endswith("sub-groups") else deepspeed_config
        try:
            loop.train(spec)
        except UserError as error:
            Path(f"{spec.output}.error{os.environ['RANK']}").write_text(str(error))
    leave_group()


def allow_fp16_on_cpus() -> None:
    """PyTorch computes in fp16 on any CPU, if slowly; DeepSpeed asks for fast kernels."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda _: True


@contextmanager
def stopping_after(num_steps: int, *_: object) -> Iterator[Callable[[float], Stop]]:
    """In place of SIGTERM: the request comes in step `num_steps` from here."""
    calls = itertools.count(1)
    yield lambda _: Stop.ASKED if next(calls) == num_steps else Stop.NO


def in_sub_groups(*arguments: Any, **options: Any) -> dict[str, Any]:
    """DeepSpeed's configuration for a model of so many parameters that ZeRO-3 updates them in several groups."""
    config = deepspeed_config(*arguments, **options)
    config["zero_optimization"]["sub_group_size"] = 2000
    return config


def exploding(objective: type[Any]) -> type[Any]:
    """A finite loss whose gradient is not."""
    import torch

    class Explosion(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, loss: Any) -> Any:
            return loss.clone()

        @staticmethod
        def backward(_: Any, gradient: Any) -> Any:
            return gradient * float("inf")

    class Exploding(objective):  # type: ignore[misc]
        def loss(self, engine: Any, batch: Any) -> Any:
            loss = super().loss(engine, batch)
            return dataclasses.replace(loss, total=Explosion.apply(loss.total))

    return Exploding


def renamed(spec: TrainSpec, name: str) -> TrainSpec:
    """The same training into another folder."""
    return dataclasses.replace(spec, name=name, output=str(Path(spec.output).with_name(name)))


if __name__ == "__main__":
    main(sys.argv[1])

"""What is recorded of a training: arithmetic, waits, profiles, trackers."""

from __future__ import annotations

import re
import signal
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from w2sr.errors import UserError
from w2sr.training import trackers
from w2sr.training.config import TrainConfig
from w2sr.training.flops import ModelFlops, peak_flops
from w2sr.training.profiling import check_profile
from w2sr.training.signals import Stop, stop_requests
from w2sr.training.spec import TrainSpec
from w2sr.training.watch import Watch
from w2sr.training.watchdog import Watchdog, digest
from w2sr.training.writing import Writer


def tiny_model(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=tied, attn_implementation="eager"))


@pytest.mark.parametrize("tied", [True, False])
def test_the_arithmetic_of_a_step_is_what_torch_counts_with_half_of_the_attention(tied: bool) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = tiny_model(tied), torch.randint(0, 50, (2, 24))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    attention = 12 * 3 * 32 * 2 * 24 * 24  # eager attention computes all pairs: Q K^T and the sum over V, forward and twice backward
    counted = counter.get_total_flops()
    rotary = counted - attention - ModelFlops.of(model).of_rows(np.array([24, 24])) + 12 * 3 * 32 * 2 * 24 * 25 / 2
    norms = 6 * 48 * sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert abs(rotary + norms) < 0.01 * counted  # norms are no matrices, and the angles of positions are a small one


def test_weights_that_are_not_trained_save_their_gradients() -> None:
    model = tiny_model(True)
    whole = ModelFlops.of(model)
    model.requires_grad_(False)
    assert ModelFlops.of(model).per_token == pytest.approx(whole.per_token * 4 / 6)


def test_the_peak_of_a_gpu_is_found_by_its_name_and_that_of_a_cpu_by_doing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    names = iter(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA RTX A4000", "NVIDIA H200"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: next(names))
    gpu = SimpleNamespace(type="cuda")
    found = [peak_flops(gpu, precision) for precision in ("bf16", "bf16", "fp32", "bf16", "bf16")]  # type: ignore[arg-type]
    assert found == [989.4e12, 756e12, 19.5e12, None, 989.4e12]
    measured = peak_flops(torch.device("cpu"), "fp32")
    assert measured is not None
    assert 1e8 < measured < 1e14


@pytest.mark.parametrize("steps", [[0, 3], [5, 4]])
def test_a_profile_of_no_steps_is_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"is not a first and a last step, counted from 1; write for example \[10, 12\]"):
        TrainConfig.model_validate({"max_steps": 9, "watch": {"profile": {"steps": steps}}})


def test_watching_is_no_part_of_what_decides_the_weights() -> None:
    watched = TrainConfig.model_validate(
        {"max_steps": 9, "asynchronous_checkpoints": True, "watch": {"step_timeout_s": 3, "trackers": ["mlflow"]}}
    )
    assert watched.identity() == TrainConfig(max_steps=9).identity()


def place(at: str, waits: bool) -> dict[str, Any]:
    return {"at": at, "waits": waits}


def test_the_digest_names_first_whom_the_others_wait_for() -> None:
    waiting = place("all_gather (dist.py:50)", True)
    late = place("micro_batches (feed.py:61)", False)
    assert digest({0: waiting, 1: late, 2: waiting, 3: waiting}, 5) == (
        "no sign of rank 4 (stopped, swapped out, or on a lost node); rank 1 at work in micro_batches (feed.py:61); "
        "ranks 0, 2-3 wait in all_gather (dist.py:50)"
    )
    assert digest({0: waiting, 1: waiting}, 2).endswith("nobody is late: look at the network between the nodes")


def test_every_stall_between_steps_is_told_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK_S", 0.02), ("MOST_S", 0.2)):
        monkeypatch.setattr(f"w2sr.training.watchdog.{name}", seconds)
    said, dog = tmp_path / "stalls" / "said.txt", Watchdog(tmp_path, 0, 1, None)
    try:
        for number in (1, 2):
            dog.begin(number)
            dog.end()
            deadline = time.monotonic() + 30
            while not (said.is_file() and f"after step {number} takes" in said.read_text()) and time.monotonic() < deadline:
                time.sleep(0.02)
        dog.begin(3)
        dog.end()
    finally:
        dog.close()
    took, went_on = r"what comes after step {} takes 0 s so far: rank 0 at work in .*", r"what comes after step {} went on after \d+ s"
    lines = "\n".join(text.format(number) for number in (1, 2) for text in (took, went_on))
    assert re.fullmatch(lines + "\n", said.read_text()), said.read_text()


def test_a_rank_that_waits_for_its_own_disk_is_not_said_to_wait_for_others(tmp_path: Path) -> None:
    writer, dog = Writer(in_background=True), Watchdog(tmp_path, 0, 1, 0.2)
    try:
        dog.begin(1)
        writer.submit(lambda: time.sleep(3))
        writer.wait()
        dog.end()
    finally:
        dog.close()
        writer.close()
    assert "step 1 takes" in (said := (tmp_path / "stalls" / "said.txt").read_text())
    assert re.search(r"rank 0 at work in wait \(w2sr/training/writing.py:\d+\)", said)


def test_a_profile_of_steps_that_do_not_come_is_refused() -> None:
    config = TrainConfig.model_validate({"max_steps": 9, "watch": {"profile": {"steps": [5, 12]}}}).watch.profile
    check_profile(config, 5)
    with pytest.raises(UserError, match=r"profile.steps=\[5, 12\], but the training has 4 steps"):
        check_profile(config, 4)


def test_the_limit_of_a_step_follows_the_steps_before_it(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, 0, 1, None)
    try:
        assert dog.limit_s == 900
        dog.begin(1)
        assert dog.limit_s == 900  # nothing is known yet
        dog._durations.extend([20.0, 1.0, 30.0])
        assert dog.limit_s == 200
        dog._durations.extend([0.1] * 20)
        assert dog.limit_s == 60
        dog.end()
    finally:
        dog.close()


def make_spec(output: Path, *names: str, max_steps: int = 2) -> TrainSpec:
    train = TrainConfig.model_validate({"max_steps": max_steps, "watch": {"trackers": names, "project": "ours"}})
    return TrainSpec("all-seed0", 0, train, "model", "digest", "rows", str(output))


def test_a_tracker_whose_client_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    trackers.require_clients(["mlflow"])
    with pytest.raises(UserError, match=r"wandb is not installed here; pip install wandb, or take it out of the list"):
        trackers.require_clients(["mlflow", "wandb"])


class FakeMLflow(SimpleNamespace):
    """The few calls of MLflow's client that are used. docs/watching.md tells of the real one."""

    def __init__(self) -> None:
        class MlflowException(Exception):
            pass

        self.sent = list[tuple[Any, ...]]()
        self.answers = True
        self.refusal = MlflowException("API request failed\nconnection refused")
        metric = SimpleNamespace(Metric=lambda *fields: fields[:2] + fields[3:])
        super().__init__(exceptions=SimpleNamespace(MlflowException=MlflowException), MlflowClient=lambda: self, entities=metric)

    def _take(self, *what: Any) -> None:
        if not self.answers:
            raise self.refusal
        self.sent.append(what)

    def get_experiment_by_name(self, name: str) -> None:
        self._take("experiment", name)

    def create_experiment(self, name: str) -> str:
        return f"e-{name}"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}/{run_name}"))

    def log_param(self, *_: Any) -> None:
        pass

    def update_run(self, run_id: str, status: str) -> None:
        self._take(run_id, status)

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self._take(run_id, *metrics)

    def set_terminated(self, run_id: str, status: str) -> None:
        self._take(run_id, status)


def test_mlflow_gets_every_row_and_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for step, finished in ((1, False), (2, True)):
        (tracker,) = trackers.open_trackers(make_spec(tmp_path, "mlflow"))
        tracker.log(step, {"loss": 2.5})
        tracker.close(finished)
    run = "e-ours/all-seed0"
    assert fake.sent[1:] == [(run, ("loss", 2.5, 1)), (run, "KILLED"), (run, "RUNNING"), (run, ("loss", 2.5, 2)), (run, "FINISHED")]


def test_an_mlflow_that_goes_away_is_said_once_and_one_that_never_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    (tracker,) = trackers.open_trackers(make_spec(tmp_path, "mlflow"))
    fake.answers = False
    for step in (1, 2):
        tracker.log(step, {"loss": 2.5})
    tracker.close(True)
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow did not take the numbers of a step (API request failed); it gets no more of this attempt"
    ]
    with pytest.raises(UserError, match=r"MLflow cannot begin a run \(API request failed\); set MLFLOW_TRACKING_URI on all nodes"):
        trackers.open_trackers(make_spec(tmp_path / "other", "mlflow"))


def test_wandb_gets_a_run_whose_identity_is_the_folder_and_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, sent = list[dict[str, Any]](), list[Any]()

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            sent.append((values, step))

        def finish(self, exit_code: int) -> None:
            sent.append(exit_code)

    def init(**options: Any) -> Run:
        begun.append(options)
        return Run()

    fake = SimpleNamespace(init=init, errors=SimpleNamespace(Error=KeyError))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("w2sr.training.spec.rows_digest", str)
    for output, max_steps in ((tmp_path, 2), (tmp_path, 2), (tmp_path / "other", 2), (tmp_path, 3)):
        (tracker,) = trackers.open_trackers(make_spec(output, "wandb", max_steps=max_steps))
        tracker.log(3, {"loss": 1.5})
        tracker.close(False)
    first, *others = (options["id"] for options in begun)
    assert others[0] == first
    assert len({*others}) == 3
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("ours", "all-seed0", "allow")
    assert sent[:2] == [({"loss": 1.5}, 3), 1]

    def refuse(**_: Any) -> Run:
        raise KeyError("no key")

    fake.init = refuse
    with pytest.raises(UserError, match=r"W&B cannot begin a run \('no key'\); log in on all nodes"):
        trackers.open_trackers(make_spec(tmp_path, "wandb"))


def test_a_stop_at_a_time_comes_while_there_is_time_to_save(tmp_path: Path) -> None:
    in_a_minute = datetime.now(timezone.utc) + timedelta(seconds=60)
    with stop_requests(in_a_minute, tmp_path / "stop") as stop:
        assert stop(50) is Stop.NO
        assert stop(61) is Stop.LATE
        (tmp_path / "stop").touch()
        assert stop(61) is Stop.ASKED
    with stop_requests(None, None) as stop:
        assert stop(1e9) is Stop.NO
        signal.raise_signal(signal.SIGTERM)
        assert stop(0) is Stop.ASKED


def test_the_time_a_stop_needs_is_that_of_two_steps_and_twice_the_longest_of_what_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("w2sr.training.watch.time", SimpleNamespace(monotonic=lambda: clock[0]))
    group: Any = SimpleNamespace(rank=1, world_size=2, device=SimpleNamespace(type="cpu"))
    watch = Watch(make_spec(tmp_path), group, 1, None)
    try:
        assert watch.next_s == 0
        for number, step_s, save_s in ((1, 5.0, 7.0), (2, 3.0, 2.0)):
            with watch.step(number), watch.timed("data"):
                clock[0] += step_s
            with watch.timed("checkpoint"):
                clock[0] += save_s
        assert watch.next_s == 2 * (3 + 7)
    finally:
        watch.close()

"""Kills, stops and refusals: what a training leaves behind and how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import ROOT, environment, make_spec, started, steps_logged, train_on_ranks, wait_for_step, write_spec
from w2sr.errors import UserError
from w2sr.training.spec import TrainResult, TrainSpec

# With the parts of a checkpoint that are not DeepSpeed's: an average, and what the selection split has decided.
CHOOSING = {"optimizer": {"average": {"decay": 0.9}}, "selection": {"every": 3, "export": "best"}}
LONG = {"max_steps": 30, "checkpoint_every": 5, **CHOOSING}


def model_bytes(spec: TrainSpec) -> bytes:
    return (Path(spec.output) / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the trainings that nobody disturbs, at stages 2 and 3."""
    folder = tmp_path_factory.mktemp("calm")
    for code, output in train_on_ranks(folder, [make_spec(folder, f"calm{stage}", zero_stage=stage, **LONG) for stage in (2, 3)]):
        assert code == 0, output
    return folder


def test_a_training_whose_rank_was_killed_ends_in_the_same_bits(calm: Path) -> None:
    spec = make_spec(calm, "killed", zero_stage=3, **LONG)
    path = str(write_spec(spec))
    with started("w2sr.training", path) as ranks:
        wait_for_step(spec, 12)
        ranks[1].kill()
        assert ranks[0].finish()[0] != 0  # it notices
    assert TrainResult.load(Path(spec.output)) is None
    checkpoints = Path(spec.output) / "checkpoints"
    assert len([folder for folder in checkpoints.iterdir() if (folder / "complete.json").exists()]) == 1
    half = checkpoints / ".step-00000029.aside"
    half.mkdir(exist_ok=True)
    (checkpoints / "step-00000028").mkdir()  # a folder that nobody finished
    with started("w2sr.training", path) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 0, output
    assert model_bytes(spec) == model_bytes(make_spec(calm, "calm3", zero_stage=3, **LONG))
    assert steps_logged(spec) == list(range(1, 31))
    assert not checkpoints.exists()


def test_under_torchrun_sigterm_saves_at_the_next_step_and_the_bits_stay_the_same(calm: Path) -> None:
    spec = make_spec(calm, "stopped", zero_stage=2, **(LONG | {"checkpoint_every": 1000}))
    command = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    arguments = [sys.executable, "-m", *command, "-m", "w2sr.training", str(write_spec(spec))]
    with subprocess.Popen(arguments, env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as agent:
        wait_for_step(spec, 3)
        agent.send_signal(signal.SIGTERM)
        output = agent.communicate(timeout=120)[0]
    saved = sorted((Path(spec.output) / "checkpoints").glob("step-*/complete.json"))
    assert len(saved) == 1, output
    assert 3 <= json.loads(saved[0].read_text())["step"] < 30
    with started("w2sr.training", arguments[-1]) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 0, output
    assert model_bytes(spec) == model_bytes(make_spec(calm, "calm2", zero_stage=2, **LONG))
    assert steps_logged(spec) == list(range(1, 31))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process, as its only rank. Its process group stays: DeepSpeed cannot be used with a second one."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that what the training sets is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("alone")
def test_one_process_needs_no_launcher_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    from w2sr.training.__main__ import main

    spec = make_spec(tmp_path, "one", num_ranks=1, max_steps=2, keep_checkpoints=True)
    assert main([str(write_spec(spec))]) == 0
    assert (Path(spec.output) / "checkpoints" / "step-00000002" / "complete.json").exists()
    before = model_bytes(spec)
    assert main([str(write_spec(spec))]) == 0
    assert model_bytes(spec) == before
    assert steps_logged(spec) == [1, 2]


@pytest.mark.usefixtures("alone")
def test_another_number_of_ranks_than_configured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from w2sr.training.__main__ import main

    assert main([str(write_spec(make_spec(tmp_path, "two")))]) == 2
    assert "train.num_ranks=2, but 1 ranks were started" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "one", num_ranks=1)
    checkpoint = Path(spec.output) / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    position = {"step": 2, "tokens": 1, "supervised_tokens": 1, "seconds": 1.0, "rank_seconds": 1.0, "sizes": [[1, 1]], "files": {}}
    (checkpoint / "complete.json").write_text(json.dumps({**position, "identity": "other", "world_size": 1}))
    with pytest.raises(UserError, match="belongs to another training"):
        train(spec)


@pytest.mark.usefixtures("alone")
def test_an_export_that_is_not_the_trained_model_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    from w2sr.training import export
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "one", num_ranks=1, max_steps=1)
    write_rest = export.write_rest

    def spoil(module: object, start_model: str, precision: str, folder: Path) -> None:
        write_rest(module, start_model, precision, folder)
        state = load_file(folder / "model.safetensors")
        save_file({**state, "model.norm.weight": state["model.norm.weight"] * 2}, folder / "model.safetensors", metadata={"format": "pt"})

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_rest", spoil)
        with pytest.raises(export.ExportError, match=r"weight model.norm.weight differs"):
            train(spec)
    with monkeypatch.context() as patch:
        patch.setattr(export, "TOLERANCE", {"fp32": -1.0})
        with pytest.raises(export.ExportError, match="logits differ by up to 0 "):
            train(spec)
    assert not (Path(spec.output) / "model").exists()
    assert train(spec)
    assert (Path(spec.output) / "model").exists()

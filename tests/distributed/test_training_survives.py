"""Kills, stops and refusals: what a training leaves behind and how it goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.kills import Kill
from tests.distributed.ranks import ROOT, environment, make_spec, started, steps_logged, train_on_ranks, wait_for_step, write_spec
from w2sr.errors import StoppedEarly, UserError
from w2sr.training.checkpoint import write_manifest
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
    write_manifest(checkpoint / "complete.json", {**position, "identity": "other", "world_size": 1})
    with pytest.raises(UserError, match="belongs to another training"):
        train(spec)
    whole = (checkpoint / "complete.json").read_text()
    for spoilt in (whole[:-20], whole.replace('"step": 2', '"step": 1'), "[]"):
        (checkpoint / "complete.json").write_text(spoilt)
        with pytest.raises(UserError, match=r"is damaged: complete.json is not what was written. It is the only one .* or remove"):
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


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["in place", "beside the steps"])
def test_a_disk_that_is_full_at_a_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    from w2sr.training.checkpoint import Checkpoints
    from w2sr.training.loop import train

    calm = make_spec(tmp_path, "calm", num_ranks=1, max_steps=5, checkpoint_every=2)
    assert train(calm)
    spec = make_spec(tmp_path, "full", num_ranks=1, max_steps=5, checkpoint_every=2, asynchronous_checkpoints=asynchronous)
    disk = Path(spec.output)
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    save = Checkpoints.save

    def save_on_what_is_left(self: Checkpoints, *arguments: Any) -> None:
        if arguments[1].step == 4:
            with open(disk / "filler", "wb", buffering=0) as file:
                while shutil.disk_usage(disk).free > 65536:
                    file.write(b"x" * 16384)
        save(self, *arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_on_what_is_left)
            with pytest.raises(UserError, match="is full; free some space"):
                train(spec)
        assert (disk / "checkpoints" / "step-00000002" / "complete.json").exists()
        (disk / "filler").unlink()
        assert train(spec)
        assert model_bytes(spec) == model_bytes(calm)
        assert steps_logged(spec) == [1, 2, 3, 4, 5]
    finally:
        # Lazily: this process has weights of it mapped until they are garbage.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def start_and_kill(spec: TrainSpec, kill: Kill) -> str:
    """Return what was under way when the kill came."""
    notes = Path(spec.output) / "notes"
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    path = write_spec(spec)
    path.with_suffix(".order").write_text(json.dumps(dataclasses.asdict(kill)))
    with started("tests.distributed.kills", str(path)) as ranks:
        assert all(rank.finish()[0] for rank in ranks)
    return str(json.loads((notes / "death").read_text())["moment"])


def test_a_training_killed_while_checkpoints_are_written_beside_its_steps_ends_in_the_same_bits(calm: Path) -> None:
    """benchmarks/training_faults.py kills at every moment; at these two a checkpoint is half of what it shall be."""
    spec = make_spec(calm, "beside", zero_stage=3, asynchronous_checkpoints=True, **LONG)
    checkpoints = Path(spec.output) / "checkpoints"
    start_and_kill(spec, Kill("writing a checkpoint's file", 3, 0.0, None))  # the second checkpoint's, of one rank
    assert not (checkpoints / "step-00000010" / "complete.json").exists()
    assert start_and_kill(spec, Kill("writing the manifest, renaming", 2, 0.0, 0)) == "writing the manifest, renaming"
    with started("w2sr.training", str(write_spec(spec))) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 0, output
    assert model_bytes(spec) == model_bytes(make_spec(calm, "calm3", zero_stage=3, **LONG))
    assert steps_logged(spec) == list(range(1, 31))
    assert not checkpoints.exists()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_before_its_time_is_up_a_training_saves_and_ends_with_75(
    tmp_path: Path, asynchronous: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from w2sr.training.__main__ import main

    calm = make_spec(tmp_path, "calm", num_ranks=1, max_steps=4)
    assert main([str(write_spec(calm))]) == 0
    spec = make_spec(tmp_path, "late", num_ranks=1, max_steps=4, checkpoint_every=100, asynchronous_checkpoints=asynchronous)
    late = dataclasses.replace(spec, stop_by="2020-01-01T00:00:00+00:00")
    for step in (1, 2, 3):  # each time one step is done, so that it comes to an end
        assert main([str(write_spec(late))]) == 75
        assert [path.name for path in (Path(spec.output) / "checkpoints").iterdir()] == [f"step-0000000{step}"]
    said = capsys.readouterr().err
    assert "late: saved after step 3 of 4, before stop_by=2020-01-01T00:00:00+00:00; run the same command again to go on" in said
    assert main([str(write_spec(spec))]) == 0
    assert model_bytes(spec) == model_bytes(calm)


@pytest.mark.usefixtures("alone")
def test_a_stop_file_ends_a_training_with_its_state_saved_and_goes_with_it(tmp_path: Path) -> None:
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "one", num_ranks=1, max_steps=4, checkpoint_every=100)
    stop = Path(spec.output) / "stop"
    stop.parent.mkdir()
    stop.touch()
    assert not train(spec)
    assert not stop.exists()
    assert [path.name for path in (Path(spec.output) / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.usefixtures("alone")
def test_what_a_kill_after_the_result_left_behind_goes_at_the_next_start(tmp_path: Path) -> None:
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "one", num_ranks=1, max_steps=1)
    assert train(spec)
    half = Path(spec.output) / "checkpoints" / "step-00000001" / "state"
    half.mkdir(parents=True)
    (Path(spec.output) / ".result.json.77.aside").touch()
    assert train(spec)
    assert not half.parent.parent.exists()
    assert not list(Path(spec.output).glob(".*"))


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_with_a_flipped_bit_is_refused_before_it_is_trained_on(tmp_path: Path) -> None:
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "one", num_ranks=1, max_steps=2)
    late = dataclasses.replace(spec, stop_by="2020-01-01T00:00:00+00:00")
    with pytest.raises(StoppedEarly):
        train(late)
    path = next((Path(spec.output) / "checkpoints").rglob("*optim_states.pt"))
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match=r"step-00000001 is damaged: state/.*optim_states\.pt has a wrong checksum"):
        train(spec)

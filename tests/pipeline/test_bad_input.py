"""What a user gets wrong: exit code 2, one message with the value, what is allowed and what to do, and no traceback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from tests.pipeline.conftest import QUICKSTART, ROOT, Command, small_run
from w2sr.artifacts import Manifest

GOOD_LINE = json.dumps({"question": "State the final answer to the following arithmetic problem: 1 + 2 =", "answer": "3"})


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command in this process; return its one message."""
    assert main(list(arguments)) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("w2sr: ")]
    assert len(message) == 1, message
    return message[0]


def with_source(folder: Path, source: str) -> list[str]:
    return ["prompts", str(QUICKSTART), f"run_dir={folder / 'run'}", f"prompts.source={source}"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["data.jsonl", "does not exist"]),
        ("", ["data.jsonl", "holds no rows"]),
        (GOOD_LINE + "\n{broken\n", ["data.jsonl", "line 2"]),
        (GOOD_LINE.replace("question", "frage"), ["'question'", "frage"]),
        (GOOD_LINE, ["num_train + num_selection + num_test = ", "holds 1 different"]),
    ],
    ids=["missing", "empty", "malformed", "missing field", "too few"],
)
def test_a_bad_prompt_file_is_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, words: list[str]) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    message = refused(capsys, *with_source(tmp_path, f"{{kind: file, path: {tmp_path / 'data.jsonl'}}}"))
    for word in words:
        assert word.lower() in message.lower(), message


def test_duplicate_ids_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": n + 1, "id": "same"} for n in range(3)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    message = refused(capsys, *with_source(tmp_path, f"{{kind: file, path: {tmp_path / 'data.jsonl'}, fields: {{id: id}}}}"))
    assert "same" in message


def test_an_unknown_task_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "chain_sum" in refused(capsys, *with_source(tmp_path, "{kind: reasoning_gym, tasks: [{name: chain_sun}]}"))


@pytest.mark.parametrize("model", ["lab:teecher", "/nowhere/at/all", "nobody/nothing-at-all"])
def test_an_unknown_model_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(capsys, "run", str(QUICKSTART), f"run_dir={tmp_path / 'run'}", f"teachers.0.model={model}")
    assert model in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        ("train.num_ranks=64", "train: student"),
        ("teachers.0.pool={min_replicas: 512, replicas: 512}", "generate: teacher weak"),
        ("evaluate.pool.cpus_per_replica=512", "evaluate: models under evaluation"),
    ],
)
def test_more_processors_than_there_are_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, asked: str
) -> None:
    extra = ["train.global_batch_size=64", "train.micro_batch_size=1"]
    message = refused(capsys, "run", str(QUICKSTART), f"run_dir={tmp_path / 'run'}", setting, *extra)
    assert asked in message
    assert f"There is: this machine: 0 GPUs, {len(os.sched_getaffinity(0))} CPU" in message
    assert not (tmp_path / "run").exists()


def test_a_typo_in_the_config_names_the_nearest_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(QUICKSTART.read_text().replace("learning_rate:", "learnign_rate:"))
    message = refused(capsys, "run", str(path))
    assert "train: unknown key 'learnign_rate': did you mean 'learning_rate'?" in message


def test_a_run_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "run_dir=" in refused(capsys, "run", str(QUICKSTART), f"run_dir={tmp_path / 'file' / 'run'}")


def test_status_of_something_else_is_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is not a run folder" in refused(capsys, "status", str(tmp_path))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code, output = Command(["status", str(tmp_path), "--debug"]).run()
    assert code == 1
    assert "Traceback" in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to `path` until its disk is full."""
    with open(path, "wb", buffering=0) as file:
        while shutil.disk_usage(path.parent).free:
            file.write(b"x" * 4096)


def test_a_full_disk_is_said_and_what_was_finished_is_kept(small_disk: Path) -> None:
    command = small_run(small_disk / "run", "prompts.num_train=200", command="prompts")
    assert command.run()[0] == 0
    filler = small_disk / "filler"
    fill(filler)
    command = small_run(small_disk / "run", "prompts.num_train=200", command="generate")
    code, output = command.run()
    command.wait_until_gone()
    assert code == 2, output
    assert "the disk is full" in output
    assert "Traceback" not in output
    assert Manifest.load(small_disk / "run" / "prompts").counts["train"] == 200
    filler.unlink()
    assert small_run(small_disk / "run", "prompts.num_train=200", command="prompts").run()[0] == 0


def test_no_free_port_is_said_at_once(tmp_path: Path) -> None:
    command = small_run(tmp_path / "run", command="prompts")
    assert command.run()[0] == 0
    narrow = "ip link set lo up && echo 50000 50003 > /proc/sys/net/ipv4/ip_local_port_range"
    alone = ["unshare", "--net", "sh", "-c"]
    if subprocess.run([*alone, narrow], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own needs root and Debian's iproute2")
    line = shlex.join([sys.executable, "-m", "launcher", *small_run(tmp_path / "run", command="generate").arguments])
    done = subprocess.run([*alone, f"{narrow} && exec {line}"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "ports that Ray needs are free on 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr

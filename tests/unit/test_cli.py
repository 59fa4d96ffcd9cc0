"""What the `w2sr` command makes of how its commands end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli

ROOT = Path(__file__).parents[2]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "config", "schema"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_to_somebody_else_is_not_taken_for_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> int:
        raise BrokenPipeError("a host that died")

    monkeypatch.setattr(cli, "_guarded", fail)
    with pytest.raises(BrokenPipeError, match="a host that died"):
        cli.main(["status", str(tmp_path)])


def test_a_second_ctrl_c_while_libraries_close_ends_the_process_without_a_word() -> None:
    # A library's exit handler that takes its time, as Ray's does.
    program = """
import atexit, sys, time
from launcher import cli
def close():
    print("closing", flush=True)
    time.sleep(60)
atexit.register(close)
cli._guarded = lambda _: cli.INTERRUPTED
sys.exit(cli.main(["config", "schema"]))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGINT, ("", ""))

"""Calls of `launcher.node` on many hosts at once, each a process of its own (ssh, or the node's Python itself on this machine)."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher.node_spec import NodeReport, NodeSpec
from w2sr.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.05
SAY_EVERY_S = 3.0


@dataclass(frozen=True)
class Answer:
    """How a call ended. `code` is None when it was ended because its time was over."""

    host: str
    code: int | None
    out: str
    err: str

    @property
    def why(self) -> str:
        """What it said when it failed: of a node that answered, only its message."""
        said = self.err.partition("w2sr node: ")[2].strip() or self.err.strip()
        return said or ("it did not answer in time" if self.code is None else f"exit code {self.code} without a word")


class Call:
    """A running call. Its stdin stays open until the end: `start --attached` takes the closing of it for our death.

    Raises OSError when the command cannot be started.
    """

    def __init__(self, host: str, command: Sequence[str], line: str = "") -> None:
        self.host = host
        # Files, not pipes: what is said waits there until somebody looks. `answer` closes them.
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        with contextlib.ExitStack() as unless_started:
            unless_started.enter_context(self._out)
            unless_started.enter_context(self._err)
            # A session of its own: Ctrl-C goes to us alone, and we end what we started in order.
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=self._out, stderr=self._err, start_new_session=True, cwd=ROOT
            )
            unless_started.pop_all()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already; its answer says why

    @property
    def phase(self) -> str:
        """What it does now."""
        lines = _text(self._err).strip().splitlines()
        return lines[-1] if lines else "connecting"

    def answer(self, timed_out: bool = False) -> Answer:
        """End it, should it still run, and return what it said."""
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it did not read before it ended is still to be written
            self.process.stdin.close()
        code = self.process.wait()
        with self._out, self._err:
            return Answer(self.host, None if timed_out else code, _text(self._out), _text(self._err))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def run_all(calls: Sequence[Call], timeout_s: float, waiting: Callable[[list[Call], float], None] | None = None) -> list[Answer]:
    """Return the answers of all calls, in their order. `waiting(running, seconds)` is called every few seconds.

    When this is interrupted (Ctrl-C) the calls that run are ended before the interrupt goes on.
    """
    began = said = time.monotonic()
    ended: dict[int, Answer] = {}
    try:
        while len(ended) < len(calls):
            now = time.monotonic()
            for index, call in enumerate(calls):
                over = now - began > timeout_s
                if index not in ended and (over or call.process.poll() is not None):
                    ended[index] = call.answer(timed_out=over and call.process.poll() is None)
            if waiting and now - said > SAY_EVERY_S and len(ended) < len(calls):
                waiting([call for index, call in enumerate(calls) if index not in ended], now - began)
                said = now
            time.sleep(POLL_S)
    finally:
        for index, call in enumerate(calls):
            if index not in ended:
                call.answer()
    return [ended[index] for index in range(len(calls))]


def node_command(python: str, action: str) -> list[str]:
    """Return the command that does `action` on the machine where it runs."""
    return [python, "-m", "launcher.node", action, *(["--attached"] if action == "start" else [])]


def check_same(host: str, report: NodeReport, ours: NodeReport, root: Path = ROOT) -> None:
    """Raise UserError when a host would run other code or versions than this machine."""
    other = [f"{name} {report.versions.get(name, 'none')} instead of {version}" for name, version in ours.versions.items()]
    other = [text for text, name in zip(other, ours.versions, strict=True) if report.versions.get(name) != ours.versions[name]]
    if other:
        raise UserError(
            f"host {host} has {', '.join(other)}, which this machine has; install the same versions there, or set environment_copy: true"
        )
    if report.code != ours.code:
        raise UserError(
            f"host {host} has other code in {root} than this machine (digest {report.code[:12]} instead of {ours.code[:12]}); bring both "
            "to the same commit, or set tree: copy"
        )


def spec_to_find(cluster: str, folder: str) -> NodeSpec:
    """Return the specification for `stop` and `status`, which look only at the folder."""
    return NodeSpec(cluster=cluster, folder=folder, port_key=cluster, token_path="")

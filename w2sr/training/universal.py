"""A checkpoint for any number of ranks: DeepSpeed's universal form, made once, beside the original.

One rank converts, in a process of its own whose memory is gone afterwards; that process dies with the rank. No collective waits
meanwhile, so none can time out: the other ranks look for a file. The folder of the universal form gets its name by a rename, after its
files are synced and its marker is written; what an interrupted conversion leaves is removed by the next one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from w2sr.errors import UserError
from w2sr.tables import sync_folder, sync_tree, write_text

MADE = "complete.json"
ASIDE = ".universal-"
# A 70 B student's states are a terabyte, read twice and written twice by a few processes.
TIMEOUT_S = 6 * 3600.0
POLL_S = 0.2
NUM_PROCESSES = 4  # each holds the states of one rank
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def universal_form(source: Path, target: Path, on_this_rank: bool) -> None:
    """Make `target`/<name of source> from DeepSpeed's checkpoint folder `source`, unless it is there; return when it is complete.

    Every rank calls it; the one with `on_this_rank` converts. Raises UserError when that fails or takes more than TIMEOUT_S.
    """
    if not on_this_rank:
        _wait_for(target / MADE)
        return
    if (target / MADE).is_file():
        return
    for leftover in [target, *target.parent.glob(f"{ASIDE}*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    aside = target.with_name(f"{ASIDE}{uuid.uuid4().hex[:8]}")  # a name of its own: nobody else writes there
    aside.mkdir()
    _convert(source, aside / source.name)
    sync_tree(aside)
    write_text(aside / MADE, "{}\n")
    os.replace(aside, target)
    sync_folder(target.parent)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.is_file():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path.parent} was not there after {TIMEOUT_S:.0f} s: rank 0 converts the checkpoint for another number of ranks. Is "
                "the folder on a file system that all nodes share?"
            )
        time.sleep(POLL_S)


def _convert(source: Path, target: Path) -> None:
    root = str(Path(__file__).parents[2])
    variables = {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CUDA_VISIBLE_DEVICES": "",  # the states are handled on the CPU
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, "-m", "w2sr.training.universal", str(source), str(target)]
    advice = f"go on with as many ranks as wrote it, or remove {source.parent} to start again"
    try:
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"converting {source} for another number of ranks took more than {TIMEOUT_S:.0f} s; {advice}") from error
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 2:
        raise UserError(lines[-1])
    if done.returncode:
        ended = f"was killed by signal {-done.returncode} (out of memory?)" if done.returncode < 0 else f"failed: {' '.join(lines[-1:])}"
        raise UserError(f"converting {source} for another number of ranks {ended}; {advice}")


def main(arguments: list[str]) -> int:
    """Convert the folder given first into the one given second; return the exit code: 2 after a message for the user."""
    from w2sr.training.disk import full_disk_explained
    from w2sr.training.engine import convert_to_universal

    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        with full_disk_explained(target.parent):
            convert_to_universal(source, target, min(NUM_PROCESSES, os.cpu_count() or 1))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _die_with_parent()
    os.register_at_fork(after_in_child=_die_with_parent)  # DeepSpeed's own workers; the request is not inherited
    sys.exit(main(sys.argv[1:]))

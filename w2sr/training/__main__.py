"""`python -m torch.distributed.run --nproc-per-node N -m w2sr.training SPEC.json`: one training without Ray."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from w2sr.errors import StoppedEarly, UserError

STOPPED = 143  # what a shell reports for SIGTERM


def main(arguments: list[str]) -> int:
    """Train the student of one spec file; return the exit code: 0 finished, 2 the user's mistake, 75 stopped at stop_by, 143 by SIGTERM."""
    from w2sr.training.loop import train
    from w2sr.training.spec import TrainSpec

    try:
        if len(arguments) != 1:
            raise UserError(f"give one argument, the path of a spec.json; given: {len(arguments)}")
        path = Path(arguments[0])
        if not path.is_file():
            raise UserError(f"no spec file {path}; w2sr writes it as RUN_DIR/train/NAME/spec.json")
        return 0 if train(TrainSpec.from_json(path.read_text(encoding="utf-8"), str(path))) else STOPPED
    except StoppedEarly as error:
        print(error, file=sys.stderr)
        return os.EX_TEMPFAIL
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("w2sr")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    from w2sr.training.dist import leave_group

    _log_to_stderr()
    try:
        code = main(sys.argv[1:])
    finally:
        leave_group()
    sys.exit(code)

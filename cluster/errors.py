"""What can go wrong with machines, as errors that say what to do."""

from __future__ import annotations


class ClusterError(ValueError):
    """A circumstance of the machines that the user can change: too few processors, a cluster that does not answer, workers that die.

    The command line treats it like w2sr's UserError (which this package may not import): its message, no traceback, exit code 2.
    """


class RetryLater(Exception):
    """A fault that is not the task's and may pass: an endpoint that limits its rate or is down. Raised by a worker's `run`.

    The task goes back to the driver, waits there `after_s` seconds holding no slot, and is then run again, by whichever replica is free.
    """

    def __init__(self, reason: str, after_s: float) -> None:
        super().__init__(reason, after_s)  # both, because exceptions are pickled by their args
        self.reason = reason
        self.after_s = after_s

    def __str__(self) -> str:
        return f"{self.reason} (again after {self.after_s:g} s)"

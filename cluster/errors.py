"""What can go wrong with machines, as errors that say what to do."""

from __future__ import annotations


class ClusterError(ValueError):
    """A circumstance of the machines that the user can change: too few processors, a cluster that does not answer, workers that die.

    The command line treats it like w2sr's UserError (which this package may not import): its message, no traceback, exit code 2.
    """

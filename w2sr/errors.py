"""The exceptions that the command line understands."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake or a circumstance that the user can change.

    The message says what was given, what is allowed and what to do. The command line prints it without a traceback and exits with code 2.
    """


class StoppedEarly(Exception):
    """The time to stop (`stop_by`) came before the work was done. What was finished is committed; the command line exits with code 75."""

"""The one exception type that means "the user can fix this"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake or a circumstance that the user can change.

    The message says what was given, what is allowed and what to do. The command line prints it without a traceback and exits with code 2.
    """

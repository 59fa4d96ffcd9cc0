"""A student that is begun before its traces are all there: what it was begun with, and whether that is what came out in the end.

While its stage has not begun, its folder says in `early.json` what decides the training and the digests of the waves of rows it was given.
The train stage goes on from it if all of that is still so, and begins anew otherwise.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from w2sr.tables import write_text

EARLY = "early.json"
ROWS = "rows.waves.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Early:
    """What the student in `folder` was begun with: `origin`, a digest of what decides its training, and its waves' digests so far."""

    folder: Path
    origin: str
    digests: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Early | None:
        """Return what `folder` was begun with; None when no student was begun there early."""
        path = folder / EARLY
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(folder, values["origin"], tuple(values["digests"]))

    def given(self, wave: int, digest: str) -> Early | None:
        """Note that the student gets `wave` (from 0), with rows of this digest; None when it got other rows for it before."""
        if wave < len(self.digests):
            return self if self.digests[wave] == digest else None
        assert wave == len(self.digests), "waves come in order"
        grown = replace(self, digests=(*self.digests, digest))
        grown.write()
        return grown

    def write(self) -> None:
        """Write it down."""
        write_text(self.folder / EARLY, json.dumps({"origin": self.origin, "digests": self.digests}) + "\n")

    def void(self) -> None:
        """Let nobody go on from this student."""
        replace(self, origin="").write()


def begin_early(folder: Path, origin: str) -> Early:
    """Begin a student in `folder`, or go on with one of the same origin; one of another is removed."""
    early = Early.load(folder)
    if early is not None and early.origin != origin:
        _log.warning("train %s: it was begun with another configuration or other rows; it begins anew", folder.name)
        remove_early(folder)
        early = None
    early = early or Early(folder, origin)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ROWS).unlink(missing_ok=True)  # it is given its waves again, and only once it was seen that they are the same
    early.write()
    return early


def settle_early(folder: Path, origin: str, digests: Sequence[str]) -> None:
    """Keep the student that was begun early in `folder` if it has this origin and its waves those digests; remove it otherwise."""
    early = Early.load(folder)
    if early is None:
        return
    if early.origin == origin and early.digests == tuple(digests[: len(early.digests)]):
        (folder / ROWS).unlink(missing_ok=True)
        (folder / EARLY).unlink()
        return
    _log.warning("train %s: it was begun with another configuration or other rows; it begins anew", folder.name)
    remove_early(folder)


def remove_early(folder: Path) -> None:
    """Remove a student that was begun early; nothing happens to one that was not."""
    if (folder / EARLY).exists():
        shutil.rmtree(folder)

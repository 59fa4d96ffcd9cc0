"""What a run leaves on disk, and the most that it needs at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from w2sr.planning.layout import Layout
from w2sr.planning.shapes import ModelShape
from w2sr.planning.states import trained
from w2sr.run import Run

if TYPE_CHECKING:
    from w2sr.planning.plan import Item

TEXT_BYTES = 4.0  # of a token, as text; compressed about half of it, beside the columns of ids, seeds and verdicts
ROW_BYTES = 4.0  # of a token in the rows that ranks read


def disk_of(run: Run, student: ModelShape, items: Iterable[Item]) -> dict[str, float]:
    """Return bytes by what they hold. Checkpoints: the old one goes only when the new one is complete, so there are two at a time."""
    listed = list(items)
    trained = next(item for item in listed if item.stage == "train")
    assert trained.layout is not None
    one = checkpoint_bytes(student, trained.layout)
    students = run.student_names()
    kept = len(students) if run.config.train.keep_checkpoints else 0
    texts = sum(item.tokens for item in listed if item.stage in ("generate", "evaluate"))
    return {
        "traces and answers": TEXT_BYTES * texts,
        "rows": ROW_BYTES * trained.tokens / max(1.0, run.config.train.epochs or 1.0),
        "exported students": float(len(students) * trained.layout.weight_bytes * student.num_parameters),
        "checkpoints, two while one is written": float(2 * one + max(0, kept - 1) * one),
    }


def checkpoint_bytes(shape: ModelShape, layout: Layout) -> int:
    """Return the bytes of one training checkpoint over all ranks: the weights, and the fp32 master copy with its moments."""
    masters = 0 if layout.zero_stage == 0 else 4
    states = (masters + 4 * layout.moments + 4 * layout.averages) * trained(shape, layout).total
    return layout.weight_bytes * shape.num_parameters + states

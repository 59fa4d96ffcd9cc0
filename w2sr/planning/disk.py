"""What a run leaves on disk, and the most that it needs at a time."""

from __future__ import annotations

from w2sr.planning.layout import HALF, Layout
from w2sr.planning.shapes import ModelShape
from w2sr.planning.states import MOMENTS, trained
from w2sr.planning.workload import Training
from w2sr.run import Run
from w2sr.training.config import TrainConfig

TEXT_BYTES = 4.0  # of a token, as text; compressed about half of it, beside the columns of ids, seeds and verdicts
ROW_BYTES = 4.0  # of a token in the rows that ranks read


def disk_of(run: Run, student: ModelShape, layout: Layout, trainings: list[Training], texts: float) -> dict[str, float]:
    """Return bytes by what they hold, at most. `trainings`: of each student; `texts`: tokens of all traces and answers.

    Of checkpoints the old one goes only when the new one is complete, so there are two at a time. Of best weights there are three: those of
    the last two checkpoints, and better ones found since.
    """
    train = run.config.train
    one = checkpoint_bytes(student, layout)
    kept = len(trainings) if train.keep_checkpoints else 0
    best = 3 * 4 * trained(student, layout).total if train.selection.export == "best" else 0
    found = {
        "traces and answers": TEXT_BYTES * texts,
        "rows": ROW_BYTES * sum(work.rows * work.row_tokens for work in trainings),
        "exported students": float(len(trainings) * exported_bytes(student, train)),
        "checkpoints, two while one is written": float(2 * one + max(0, kept - 1) * one),
        "best weights": float(max(1, kept) * best),
    }
    return {name: size for name, size in found.items() if size}


def exported_bytes(shape: ModelShape, train: TrainConfig) -> int:
    """Return the bytes of the tensors of a finished student."""
    return (2 if (train.export.precision or train.precision) in HALF else 4) * shape.num_parameters


def checkpoint_bytes(shape: ModelShape, layout: Layout) -> int:
    """Return the bytes of one training checkpoint over all ranks: the weights, and the fp32 master copy with its moments."""
    masters = 0 if layout.zero_stage == 0 else 4
    states = (masters + 4 * MOMENTS + 4 * layout.averages) * trained(shape, layout).total
    return layout.weight_bytes * shape.num_parameters + states

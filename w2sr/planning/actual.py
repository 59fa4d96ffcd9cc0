"""What was predicted of a training, beside what happened: train/<student>/plan.json, written when the student is done."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.planning.assumptions import GIB, Assumptions
from w2sr.planning.disk import checkpoint_bytes, exported_bytes
from w2sr.planning.layout import layout_of
from w2sr.planning.meta import FOREIGN
from w2sr.planning.shapes import shape_of
from w2sr.planning.speed import training_speed
from w2sr.planning.training_memory import training_memory
from w2sr.run import Run
from w2sr.tables import write_text
from w2sr.training.data import load_rows
from w2sr.training.spec import TrainResult, TrainSpec
from w2sr.training.watch import METRICS

FILE = "plan.json"
_log = logging.getLogger(__name__)
MEMORY = "peak_memory_gb"  # in metrics.jsonl: the largest of all ranks, allocated on a GPU, resident on a CPU


def record(spec: TrainSpec, result: TrainResult) -> None:
    """Write plan.json into the student's folder. Of a model that plan does not know it says so, here and in the log."""
    folder = Path(spec.output)
    predicted: dict[str, Any] | None = None
    note = ""
    try:
        predicted = predict(spec, result, int(load_rows(Path(spec.rows)).lengths.max()))
    except (OSError, *FOREIGN) as error:  # nothing that a prediction meets may keep a finished student from being committed
        note = str(error) or type(error).__name__
        _log.warning("%s is done; no prediction is written beside it: %s", spec.name, note)
    values = {"predicted": predicted, "actual": _actual(folder, result), "note": note}
    write_text(folder / FILE, json.dumps(values, indent=1) + "\n")


def predict(spec: TrainSpec, result: TrainResult, longest: int) -> dict[str, Any]:
    """Return memory of a rank and disk in bytes, and seconds: from the configuration, the model's shape and the number of tokens.

    `longest`: tokens of the longest row. On a CPU memory counts the libraries, as resident memory does.
    """
    train, assumed = spec.train, Assumptions()
    shape = shape_of(spec.model, Path(spec.model))
    ranks = result.sizes[-1][1]
    layout = layout_of(train, shape, ranks)
    if not train.packing:
        length = min(longest, train.max_length)
        rows = layout.micro_rows if layout.budget is None else layout.budget // length
        layout = dataclasses.replace(layout, length=length, micro_rows=rows)
    machine = assumed.machine(layout)
    memory = training_memory(shape, layout, machine)
    libraries = 0 if train.use_gpu else round(machine.context_gib * GIB)
    speed = training_speed(shape, layout, assumed, result.tokens / result.steps, train.cpus_per_rank)
    checkpoints = checkpoint_bytes(shape, layout) if train.keep_checkpoints else 0
    return {
        "memory_bytes": memory.allocated + libraries,
        "seconds": result.tokens / (speed.tokens_per_s * ranks),
        "disk_bytes": exported_bytes(shape, train) + checkpoints,
        "parts": memory.parts,
        "layout": layout.describe(),
    }


def _actual(folder: Path, result: TrainResult) -> dict[str, Any]:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    seen = [row[MEMORY] for line in lines if MEMORY in (row := json.loads(line))]
    files = [path for name in ("model", "checkpoints") for path in (folder / name).rglob("*.*") if path.is_file()]
    return {
        "memory_bytes": round(max(seen) * 1e9) if seen else None,
        "seconds": result.seconds,
        "disk_bytes": sum(path.stat().st_size for path in files),
    }


def compare_run(run: Run) -> dict[str, dict[str, Any]]:
    """Return plan.json of every finished student of a run, by name. Raises UserError when there is none."""
    paths = {name: run.stage("train", name) / FILE for name, _, _ in run.student_names()}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    if not found:
        raise UserError(f"{run.folder} has no finished student yet; for a prediction give {run.folder}/config.yaml")
    return found


def render_comparison(found: dict[str, dict[str, Any]]) -> str:
    """Return the table that `w2sr plan RUN_DIR` prints."""
    columns = (("memory_bytes", "GiB a rank", GIB), ("seconds", "seconds", 1), ("disk_bytes", "MB on disk", 1e6))
    rows = [["student", *(word for _, name, _ in columns for word in (f"{name}: predicted", "actual"))]]
    for name, values in found.items():
        predicted, actual = values["predicted"] or {}, values["actual"]
        cells = [_number(side.get(key), unit) for key, _, unit in columns for side in (predicted, actual)]
        rows.append([name, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{name}: no prediction: {values['note']}" for name, values in found.items() if values["note"])])


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:,.2f}"

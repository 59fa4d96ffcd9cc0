"""`w2sr selftest`: the trainer's promises, shown on the user's own model and data. Works in a folder of its own and leaves the run alone.

What is shown, in this order: every row passes the gate; packed rows give the loss and gradient of rows alone; one large micro-batch
trains like several small ones; one rank like several; a training that was stopped and started again like one that was not; and the
exported model has the loss that the live one had.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2sr.artifacts import MANIFEST, model_digest
from w2sr.errors import UserError
from w2sr.packing.rows import Row, Rows, build_rows, model_limits
from w2sr.records import Example, Prompt
from w2sr.run import Run
from w2sr.selftest import checks
from w2sr.selftest.checks import Check
from w2sr.selftest.groups import run_ranks
from w2sr.tables import read_table
from w2sr.teachers.models import model_folder
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.signals import STOP_FILE
from w2sr.training.spec import TrainSpec

GATE, PACKED, ACCUMULATED, RANKS, RESUMED, EXPORTED = (
    "integrity gate",
    "packed = unpacked",
    "1 = N micro-batches",
    "1 = N ranks",
    "resumed = calm",
    "exported = live",
)
STEPS = 3
UNITS_A_RANK = 2  # rows, or packed sequences, of a rank in a step


@dataclass(frozen=True)
class Options:
    """`num_rows` are trained on (all pass the gate); `num_ranks` stand against one; the ranks of a part have `timeout_s`."""

    num_rows: int = 32
    num_ranks: int = 2
    timeout_s: float = 1800.0


def selftest(run: Run, options: Options, say: Callable[[str], None]) -> list[Check]:
    """Return the checks. Raises UserError when there is no data, or no model."""
    folder = model_folder(run.config.student.model)
    examples, where = examples_of(run)
    say(f"gate: {len(examples):,} rows of {where}")
    try:
        rows = _gated(run, folder, examples)
    except UserError as error:
        return [checks.failed(GATE, str(error)), *(checks.failed(name, "no rows passed the gate") for name in _AFTER_GATE)]
    dropped = len(rows.unwritable)
    note = f"{len(rows.kept):,} rows kept, {len(rows.too_long):,} longer than train.max_length, {dropped:,} that the tokenizer cannot write"
    found = [Check(GATE, f"share of {len(examples):,} rows that the tokenizer cannot write", dropped / len(examples), 0.01, note)]
    with tempfile.TemporaryDirectory(prefix="w2sr-selftest-") as name:
        return [*found, *_Trainings(run, folder, rows.kept, options, Path(name), say).checks()]


_AFTER_GATE = (PACKED, ACCUMULATED, RANKS, RESUMED, EXPORTED)


def examples_of(run: Run) -> tuple[list[Example], str]:
    """Return what the students would be trained on: the finished arms, else the prompts' reference traces; and where that is from.

    Raises UserError when the run folder has neither.
    """
    arms = [arm for arm in dict.fromkeys(arm for _, arm, _ in run.student_names()) if (run.stage("curate") / f"{arm}.parquet").is_file()]
    if (run.stage("curate") / MANIFEST).is_file() and arms:
        found = {each.example_id: each for arm in arms for each in read_table(run.stage("curate") / f"{arm}.parquet", Example)}
        return list(found.values()), f"arm{'s' if len(arms) > 1 else ''} {', '.join(arms)}"
    path = run.stage("prompts") / "train.parquet"
    prompts = read_table(path, Prompt) if path.is_file() else []
    references = [
        Example(each.prompt_id, each.prompt_id, each.question, each.reference_trace, "gold", None, None)
        for each in prompts
        if each.reference_trace
    ]
    if not references:
        raise UserError(
            f"{run.folder} holds no rows to test with: neither curated arms nor prompts with reference traces. Run the first stages "
            "(`w2sr prompts CONFIG`, or up to `w2sr curate CONFIG`) before the selftest"
        )
    return references, "the prompts' reference traces"


def _gated(run: Run, folder: Path, examples: list[Example]) -> Rows:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return build_rows(tokenizer, run.config.student.style, examples, run.config.train.max_length, model_limits(folder))


class _Trainings:
    """Short trainings in a temporary folder, and what follows from comparing them."""

    def __init__(self, run: Run, folder: Path, rows: tuple[Row, ...], options: Options, work: Path, say: Callable[[str], None]) -> None:
        self.train, self.model, self.options, self.work, self.say = run.config.train, folder, options, work, say
        self.digest = model_digest(folder)
        # Spread over all rows, so that short and long ones are among them.
        places = np.unique(np.linspace(0, len(rows) - 1, min(options.num_rows, len(rows))).round().astype(int))
        self.rows = [rows[place] for place in places]
        save_rows(work / "some.rows.arrow", self.rows)
        self.units = UNITS_A_RANK * options.num_ranks
        self.length, self.packing = self._length()
        self.half = self.train.use_gpu and self.train.precision != "fp32"

    def _length(self) -> tuple[int, bool]:
        """Return a maximum length at which there are enough units for a step, and whether rows can be packed at all."""
        lengths = np.array([len(row.ids) for row in self.rows], dtype=np.int64)
        if len(lengths) < self.units:
            raise UserError(f"{len(lengths)} rows are too few for {self.options.num_ranks} ranks; give --rows {self.units} or more")
        length = int(max(lengths.max(), lengths.sum() // (2 * self.units)))
        enough = -(-int(lengths.sum()) // length) >= self.units
        return length, self.train.packing and enough

    def checks(self) -> list[Check]:
        """Run everything and compare."""
        n = self.options.num_ranks
        one, small = self._spec("one", 1, micro=self.units), self._spec("small", 1, micro=1)
        calm, broken = self._spec("calm", n, micro=1), self._spec("broken", n, micro=1)
        Path(broken.output).mkdir(parents=True)
        (Path(broken.output) / STOP_FILE).touch()  # it stops after its first step; other processes finish it
        packed = self._packed_spec() if self.train.packing else None
        single = self._start("single", 1, [one, small], packed, f"one rank, 1 and {self.units} micro-batches; rows packed and alone")
        several = self._start("several", n, [calm, broken], None, f"{n} ranks")
        stopped = "" if several or (Path(broken.output) / "checkpoints").is_dir() else "the training did not stop when it was asked to"
        again = self._start("again", n, [broken], None, f"{n} ranks, going on with a training that was stopped")
        note = self._randomness()
        compared: list[tuple[str, str, Callable[[], list[Check]]]] = [
            (PACKED, single, lambda: self._packed(packed)),
            (ACCUMULATED, single, lambda: self._same(ACCUMULATED, one, small, note)),
            (RANKS, single or several, lambda: self._same(RANKS, one, calm, note)),
            (RESUMED, several or stopped or again, lambda: [checks.same_bits(RESUMED, Path(calm.output), Path(broken.output))]),
            (EXPORTED, several, lambda: [self._exported(calm)]),
        ]
        return [check for name, wrong, compare in compared for check in ([checks.failed(name, wrong)] if wrong else compare())]

    def _same(self, name: str, one: TrainSpec, other: TrainSpec, note: str) -> list[Check]:
        return checks.same_training(name, Path(one.output), Path(other.output), checks.tensors_in(self.model), self.half, note)

    def _packed_spec(self) -> TrainSpec:
        length = max(self.length, 4 * max(len(row.ids) for row in self.rows))
        values = {"zero_stage": 0, "precision": "fp32", "packing": True, "max_length": length, "lora": None, "memory": {}, "optimizer": {}}
        if self.half:  # flash attention knows 16 bits only
            values |= {"zero_stage": 1, "precision": self.train.precision}
        return self._spec("packed", 1, micro=1, **values)

    def _packed(self, spec: TrainSpec | None) -> list[Check]:
        if spec is None:
            return [checks.skipped(PACKED, "train.packing is off")]
        seen = json.loads(Path(spec.output).with_suffix(".json").read_text(encoding="utf-8"))
        what = f"of {seen['rows']:.0f} rows, alone and in {seen['sequences']:.0f} sequences"
        note = "" if seen["rows"] > seen["sequences"] else "no two rows share a sequence: give more --rows"
        loss, gradient = (checks.LOSS_16, checks.GRADIENT_16) if self.half else (checks.LOSS, checks.GRADIENT)
        hint = "packed rows see each other: this model's layers do not keep them apart; set train.packing: false"
        found = [Check(PACKED, f"loss {what}", seen["loss"], loss), Check(PACKED, f"gradient {what}", seen["gradient"], gradient)]
        return [dataclasses.replace(each, note=note if each.passed else hint) for each in found]

    def _exported(self, spec: TrainSpec) -> Check:
        """Compare the live model's last loss of all rows with that of the exported one, computed by transformers alone."""
        from w2sr.selftest.plain import mean_nll

        lines = (Path(spec.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        live = [row["selection/loss"] for row in map(json.loads, lines) if "selection/loss" in row][-1]
        dtype = "float32" if spec.train.precision == "fp32" else "bfloat16"
        plain = mean_nll(Path(spec.output) / "model", self.rows, dtype)
        allowed = checks.LOSS_16 if self.half else 10 * checks.LOSS
        return Check(EXPORTED, f"loss of {len(self.rows)} rows", checks.relative(live, plain), allowed)

    def _spec(self, name: str, num_ranks: int, micro: int, **changes: Any) -> TrainSpec:
        """Return a short training under the user's settings, apart from what decides how large and how long it is."""
        values = self.train.model_dump(mode="json") | {
            "num_ranks": num_ranks,
            "min_ranks": None,
            "epochs": None,
            "max_steps": STEPS,
            "global_batch_size": self.units,
            "global_batch_tokens": None,
            "micro_batch_size": micro,
            "micro_batch_tokens": None,
            "max_length": self.length,
            "packing": self.packing,
            "schedule": "constant",
            "warmup_ratio": None,
            "warmup_steps": 0,
            "checkpoint_every": STEPS,
            "keep_checkpoints": False,
            "selection": {},
            "watch": {},
        }
        values["memory"] = {**values["memory"], "sequence_parallel": 1, "hpz_partition_size": 1}
        values["loss"] = {**values["loss"], "neftune_alpha": 0.0}  # noise is drawn anew for each rank and micro-batch
        if not self.train.use_gpu and self.train.precision != "fp32":
            values["precision"] = "fp32"  # sums of 16 bits would hide what is looked for
        train = TrainConfig.model_validate(values | changes)
        output, rows = str(self.work / name), str(self.work / "some.rows.arrow")
        return TrainSpec(name, 0, train, str(self.model), self.digest, rows, output, selection_rows=rows)

    def _start(self, name: str, num_ranks: int, specs: list[TrainSpec], packed: TrainSpec | None, what: str) -> str:
        """Run trainings, and the comparison of layouts, on some ranks; return what went wrong, or an empty string."""
        self.say(what)
        path = self.work / f"{name}.asked.json"
        layouts = [] if packed is None else [{"spec": packed.to_json(), "result": str(Path(packed.output).with_suffix(".json"))}]
        path.write_text(json.dumps({"layouts": layouts, "trainings": [spec.to_json() for spec in specs]}), encoding="utf-8")
        try:
            run_ranks(path, num_ranks, max(1, int(self.train.cpus_per_rank)), self.work / name, self.options.timeout_s)
        except UserError as error:
            return str(error)
        return ""

    def _randomness(self) -> str:
        """Return a hint for models that draw random numbers in training: then ranks and micro-batches cannot be equal."""
        values = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        drawn = [f"{key}={value}" for key, value in values.items() if "dropout" in key and isinstance(value, float) and value > 0]
        if not drawn:
            return ""
        return f"the model has dropout ({', '.join(drawn)}), drawn anew for each rank and micro-batch: set it to 0 in its config.json"

"""The rows files of a run: one for each arm, found again where it was made before, and a mixture file for each mixture.

With curate.waves an arm has a file for each wave, and an index of them. What is in such a file depends on that wave's examples alone.

They lie in the run folder while students are trained, or in the folder train.rows_cache, which runs share. A file that is there is read
once and compared with its digest before anybody trains on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from w2sr.artifacts import digest_of, file_digest
from w2sr.disk import full_disk_explained
from w2sr.errors import UserError
from w2sr.packing.rows import MAX_UNWRITABLE_SHARE
from w2sr.progress import Progress
from w2sr.prompts.waves import waves_of_prompts
from w2sr.records import Example, Prompt
from w2sr.run import Run
from w2sr.tables import iter_batches, iter_table, num_rows, read_table
from w2sr.training.config import TrainConfig
from w2sr.training.data import MIXTURE, ROWS, WAVES, RowFacts, is_sound, write_mixture, write_waves
from w2sr.training.tokenise import Recipe, Weigh, tokenise, workers_for
from w2sr.training.weights import weigher

NUM_SELECTION_ROWS = 256
_log = logging.getLogger(__name__)


class RowsMaker:
    """Makes the rows files of `run` for the student's model in `model_folder`."""

    def __init__(self, run: Run, model_folder: Path) -> None:
        train = run.config.train
        self._run = run
        self._recipe = Recipe(str(model_folder), run.config.student.style, train.max_length)
        self._folder = Path(train.rows_cache) if train.rows_cache is not None else _own_folder(run)

    def of_arm(self, arm: str) -> tuple[Path, tuple[RowFacts, ...]]:
        """Return the rows file of an arm, or the mixture file of a mixture or index of waves, and the facts of its parts."""
        shares = shares_of(self._run.config.train, arm)
        if self._run.config.curate.waves > 1:
            assert len(shares) == 1, "a mixture has no waves"
            return self._of_waves(arm)
        tables = [self._table(part) for part in shares]
        made = [
            self._of_one(part, partial(iter_table, table, Example), num_rows(table), file_digest(table))
            for part, table in zip(shares, tables)
        ]
        facts = tuple(facts for _, facts in made)
        if len(made) == 1:
            return made[0][0], facts
        parts = [(path, share) for (path, _), share in zip(made, shares.values())]
        path = self._folder / (digest_of([[part.name, share] for part, share in parts])[:24] + MIXTURE)
        write_mixture(path, parts)
        return path, facts

    def of_wave(self, arm: str, table: Path, wave: int) -> tuple[Path, RowFacts]:
        """Return the rows file of `wave` (from 0) of an arm and its facts; `table` holds that wave's examples of the arm, and no others."""
        return self._of_one(f"{arm}, wave {wave + 1}", partial(iter_table, table, Example), num_rows(table))

    def of_selection(self) -> Path | None:
        """Return the rows file of the selection prompts' reference traces; None when there are none that this student can read."""
        path = self._run.stage("prompts") / "selection.parquet"
        prompts = read_table(path, Prompt)[:NUM_SELECTION_ROWS] if path.is_file() else []
        examples = [_reference(prompt) for prompt in prompts if prompt.reference_trace]
        if not examples:
            return None
        content = [[example.prompt_id, example.question, example.text] for example in examples]
        try:
            return self._made("selection", examples, len(examples), None, content)[0]
        except UserError as error:
            _log.warning("selection/loss is not logged: %s", error)
            return None

    def _of_waves(self, arm: str) -> tuple[Path, tuple[RowFacts, ...]]:
        """Return the index of an arm's waves, all of them, and their facts. Raises UserError when all together make no training."""
        table, prompts, num_waves = self._table(arm), self._run.stage("prompts") / "train.parquet", self._run.config.curate.waves
        of_prompt = waves_of_prompts(prompts, num_waves)
        counts = Counter(of_prompt[name] for batch in iter_batches(table, ["prompt_id"]) for name in batch.column(0).to_pylist())
        made = []
        for wave in range(num_waves):
            examples = partial(_examples_of_wave, table, of_prompt, wave)
            made.append(self._of_one(f"{arm}, wave {wave + 1}", examples, counts[wave]))
        facts = tuple(facts for _, facts in made)
        self._check_waves(facts)
        path = self._folder / (digest_of([file.name for file, _ in made])[:24] + WAVES)
        write_waves(path, num_waves, [file for file, _ in made])
        return path, facts

    def _check_waves(self, facts: Sequence[RowFacts]) -> None:
        """Raise UserError when the waves of an arm make no training, as `Tally.check` does of an arm."""
        num_kept = sum(each.num_rows for each in facts)
        too_long, unwritable = ([name for each in facts for name in getattr(each, what)] for what in ("too_long", "unwritable"))
        total = num_kept + len(too_long) + len(unwritable)
        if len(unwritable) > MAX_UNWRITABLE_SHARE * total:
            raise UserError(f"{len(unwritable)} of {total} rows fail the gate. The first: example {unwritable[0]}")
        if not total:
            raise UserError("there is no example to train on; look at curate/funnel.json for the reasons, or train other arms (train.arms)")
        if not num_kept:
            raise UserError(f"all {total} rows are longer than train.max_length={self._recipe.max_length} tokens; raise it")

    def _table(self, arm: str) -> Path:
        return self._run.stage("curate") / f"{arm}.parquet"

    def _of_one(self, what: str, examples: Callable[[], Iterable[Example]], total: int, table: str | None = None) -> tuple[Path, RowFacts]:
        """`table`: digest of the file of which `examples` are all; None: they are a wave, found again in whatever file it lies."""
        loss = self._run.config.train.loss
        content = [table if table is not None else _digest_of_wave(examples()), loss.trace_weights]
        return self._made(what, examples(), total, weigher(loss, examples), content, is_part=table is None)

    def _made(
        self, what: str, examples: Iterable[Example], total: int, weigh: Weigh | None, content: Any, is_part: bool = False
    ) -> tuple[Path, RowFacts]:
        """Find or make the rows of examples; `content` is plain data that tells them, and what they weigh, from all others."""
        path = self._folder / (self._recipe.key(content)[:24] + ROWS)
        facts = RowFacts.load(path)
        if facts is not None:
            if is_sound(path):
                return path, facts
            _log.warning("the rows file %s is damaged; its rows are made again", path)
        explained = full_disk_explained(self._folder, "the students that are trained")
        with explained, Progress(f"train: rows of {what}", total, "examples") as progress:
            workers = workers_for(total, self._run.config.train.rows_workers)
            facts = tokenise(path, self._recipe, examples, weigh, workers, progress.advance, is_part)
        return path, facts


def _examples_of_wave(table: Path, waves: Mapping[str, int], wave: int) -> Iterator[Example]:
    """Yield the examples in `table` whose prompt is in `wave`, in their order."""
    import pyarrow as pa

    for batch in iter_batches(table, [field.name for field in dataclasses.fields(Example)], batch_rows=4096):
        mask = [waves[name] == wave for name in batch.column("prompt_id").to_pylist()]
        for row in batch.filter(pa.array(mask, pa.bool_())).to_pylist():
            yield Example(**row)


def _digest_of_wave(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256(b"wave")
    for example in examples:
        digest.update(json.dumps(dataclasses.astuple(example)).encode())
    return digest.hexdigest()


def shares_of(train: TrainConfig, arm: str) -> dict[str, float]:
    """Return the share of each curated arm in `arm`: an arm, which is all of itself, or a mixture."""
    mixture = next((mixture for mixture in train.mixtures if mixture.name == arm), None)
    return {arm: 1.0} if mixture is None else mixture.shares


def remove_own_rows(run: Run) -> None:
    """Remove the rows files in the run folder; no training may need them any more."""
    shutil.rmtree(_own_folder(run), ignore_errors=True)


def _own_folder(run: Run) -> Path:
    return run.stage("train", ".rows")


def _reference(prompt: Prompt) -> Example:
    return Example(prompt.prompt_id, prompt.prompt_id, prompt.question, prompt.reference_trace or "", "gold", None, None)

"""The rows files of a run: one for each arm, found again where it was made before, and a mixture file for each mixture.

They lie in the run folder while students are trained, or in the folder train.rows_cache, which runs share. A file that is there is read
once and compared with its digest before anybody trains on it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from w2sr.artifacts import digest_of, file_digest
from w2sr.disk import full_disk_explained
from w2sr.errors import UserError
from w2sr.progress import Progress
from w2sr.records import Example, Prompt
from w2sr.run import Run
from w2sr.tables import iter_table, num_rows, read_table
from w2sr.training.config import TrainConfig
from w2sr.training.data import MIXTURE, ROWS, RowFacts, is_sound, write_mixture
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
        """Return the rows file of an arm, or the mixture file of a mixture, and the facts of its parts."""
        shares = shares_of(self._run.config.train, arm)
        made = [self._of_one(part) for part in shares]
        facts = tuple(facts for _, facts in made)
        if len(made) == 1:
            return made[0][0], facts
        parts = [(path, share) for (path, _), share in zip(made, shares.values())]
        path = self._folder / (digest_of([[part.name, share] for part, share in parts])[:24] + MIXTURE)
        write_mixture(path, parts)
        return path, facts

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

    def _of_one(self, arm: str) -> tuple[Path, RowFacts]:
        table, loss = self._run.stage("curate") / f"{arm}.parquet", self._run.config.train.loss
        weigh = weigher(loss, lambda: iter_table(table, Example))
        return self._made(arm, iter_table(table, Example), num_rows(table), weigh, [file_digest(table), loss.trace_weights])

    def _made(self, what: str, examples: Iterable[Example], total: int, weigh: Weigh | None, content: Any) -> tuple[Path, RowFacts]:
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
            facts = tokenise(path, self._recipe, examples, weigh, workers, progress.advance)
        return path, facts


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

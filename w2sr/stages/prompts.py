"""Stage `prompts`: the questions of a run, in three disjoint sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from w2sr.artifacts import STARTED, StageDir
from w2sr.errors import UserError
from w2sr.progress import Progress
from w2sr.prompts.sources import load_candidates, source_digests
from w2sr.prompts.split import split_prompts
from w2sr.records import Prompt, Split
from w2sr.run import Run
from w2sr.tables import write_table


def run(run: Run) -> None:
    """Write prompts/{train,selection,test}.parquet. Counts: read = duplicates + overlap_with_test + train + selection + test + unused."""
    config = run.config.prompts
    identity = {**config.identity(), "run_seed": run.config.seed}
    stage = StageDir(run.stage("prompts"), "prompts", identity, source_digests(config))
    if stage.is_done():
        return
    total = config.num_train + config.num_selection + config.num_test
    with undone_by_user_error(stage), Progress("prompts", total, "prompts") as progress:
        main, test = load_candidates(config)
        splits, counts = split_prompts(main, test, config, run.config.seed)
        counts["without_answer"] = sum(prompt.answer is None for prompts in splits.values() for prompt in prompts)
        outputs = []
        for split in get_args(Split):
            outputs.append(stage.folder / f"{split}.parquet")
            write_table(outputs[-1], splits[split], Prompt)
            progress.advance(len(splits[split]))
        stage.finish(counts, outputs)


@contextmanager
def undone_by_user_error(stage: StageDir) -> Iterator[None]:
    """Begin `stage`; on a user's mistake forget that it was begun, or the corrected configuration would be refused as changed."""
    stage.begin()
    try:
        yield
    except UserError:
        (stage.folder / STARTED).unlink()
        raise

"""Several finished runs beside each other: the same rows of each, paired where they answered the same problems, and what differs in how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sr.artifacts import flatten
from w2sr.errors import UserError
from w2sr.evaluation.intervals import Bootstrap, Estimate
from w2sr.evaluation.sets import sets_of
from w2sr.reporting.compare import Comparison, compare_measured
from w2sr.reporting.costs import Costs, costs
from w2sr.reporting.measured import Measured, measure
from w2sr.reporting.sizes import Size, size_of
from w2sr.run import Run, open_folder

# Where a run is and how its report looks is not how it was made.
NOT_COMPARED = ("run_dir", "title", "report", "cluster")
ABSENT = "(absent)"


@dataclass(frozen=True)
class RunResult:
    """One run: its results on each of the common sets, in their order."""

    name: str
    folder: str
    title: str
    comparisons: list[Comparison]
    costs: Costs
    other_sets: list[str]
    size: Size


@dataclass(frozen=True)
class Shared:
    """A run beside the first one on a set: on how many problems that both have, and the differences of avg@k there, by row key.

    `problems`, `others`: how many each run has. Differences are paired, this run's minus the first one's; none without common problems.
    """

    set: str
    name: str
    first: str
    common: int
    problems: int
    others: int
    versus: dict[str, Estimate]


@dataclass(frozen=True)
class Change:
    """A key of the configuration whose value is not the same in all runs; values in the order of the runs."""

    key: str
    values: list[str]


@dataclass(frozen=True)
class RunsComparison:
    """All of it. The first run is the one that others are compared with."""

    sets: list[str]
    runs: list[RunResult]
    shared: list[Shared]
    changes: list[Change]


def compare_runs(folders: Sequence[Path]) -> RunsComparison:
    """Compare finished runs.

    Raises UserError for a folder that is no run, for one that is given twice, for a run that is not finished, and when no set of problems
    was evaluated in all of them.
    """
    names = _names(folders)
    runs = [open_folder(folder) for folder in folders]
    of_run = [{one.name: one for one in sets_of(run)} for run in runs]
    common = [name for name in of_run[0] if all(name in sets for sets in of_run)]
    if not common:
        had = "; ".join(f"{name}: {', '.join(sets)}" for name, sets in zip(names, of_run))
        raise UserError(f"the runs have no set of problems in common ({had}); compare runs with the same evaluate.split or benchmark")
    measured = [[measure(run, sets[name]) for name in common] for run, sets in zip(runs, of_run)]
    results = [
        _result(name, folder, run, list(sets), each) for name, folder, run, sets, each in zip(names, folders, runs, of_run, measured)
    ]
    shared = [
        _shared(runs[0], (names[0], measured[0][place]), (names[number], measured[number][place]))
        for place in range(len(common))
        for number in range(1, len(runs))
    ]
    return RunsComparison(common, results, shared, changes([run.config.model_dump(mode="json") for run in runs]))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each run: its folder's, with as many parents as it takes to tell them apart."""
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise UserError(f"{folders[number]} is given twice; give each run once")
    depth = next(depth for depth in range(1, 99) if len({folder.parts[-depth:] for folder in resolved}) == len(resolved))
    return ["/".join(folder.parts[-depth:]) for folder in resolved]


def _result(name: str, folder: Path, run: Run, sets: Iterable[str], measured: Sequence[Measured]) -> RunResult:
    comparisons = [compare_measured(run, each) for each in measured]
    common = [each.set.name for each in measured]
    others = [each for each in sets if each not in common]
    return RunResult(name, str(folder), run.config.title, comparisons, costs(run, comparisons[0]), others, size_of(run))


def _shared(run: Run, first: tuple[str, Measured], other: tuple[str, Measured]) -> Shared:
    """Pair two runs' rows on the problems with the same id and the same question."""
    (first_name, one), (name, two) = first, other
    questions = [{prompt.prompt_id: prompt.question for prompt in measured.set.problems()} for measured in (one, two)]
    places = [{prompt_id: place for place, prompt_id in enumerate(measured.prompt_ids)} for measured in (one, two)]
    common = [each for each in one.prompt_ids if each in places[1] and questions[0][each] == questions[1][each]]
    keys = [key for key in one.of_row if key in two.of_row] if common else []
    columns = {
        f"{side}:{key}": measured.of_row[key]["avg"][[places[side][each] for each in common]]
        for side, measured in enumerate((one, two))
        for key in keys
    }
    versus: dict[str, Estimate] = {}
    if columns:
        bootstrap = Bootstrap(columns, run.config.evaluate.bootstrap_samples, run.config.evaluate.confidence, run.config.seed)
        versus = {key: bootstrap.difference(f"1:{key}", f"0:{key}") for key in keys}
    return Shared(one.set.name, name, first_name, len(common), len(two.prompt_ids), len(one.prompt_ids), versus)


def changes(configs: Sequence[dict[str, Any]]) -> list[Change]:
    """Return the dotted keys whose values differ, with the value of each configuration."""
    flat = [{key: value for key, value in flatten(config).items() if key.split(".")[0] not in NOT_COMPARED} for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = {key: [_shown(one.get(key, ABSENT)) for one in flat] for key in keys}
    return [Change(key, values) for key, values in rows.items() if len(set(values)) > 1]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)

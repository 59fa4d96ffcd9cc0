"""The comparison of runs in words and tables."""

from __future__ import annotations

from w2sr.evaluation.intervals import Estimate
from w2sr.reporting import numbers
from w2sr.reporting.compare import Comparison, Row
from w2sr.reporting.cost_tables import money
from w2sr.reporting.costs import Usage
from w2sr.reporting.runs import RunResult, RunsComparison, Shared
from w2sr.reporting.sections import Section
from w2sr.reporting.sentences import leading_student
from w2sr.reporting.view import Cell, Table


def headline(found: RunsComparison) -> str:
    """Return the sentence of the first screen: the leading student of the first run, and the same arm in the others."""
    first = found.runs[0]
    leader = leading_student(first.comparisons[0])
    if leader is None:
        return f"{first.name} trained no student on a teacher's traces, so there is no result to compare."
    scores = [f"{numbers.percent(row.figures['avg'])} in {run.name}" for run in found.runs if (row := run.comparisons[0].row(leader.key))]
    verdicts = [
        f"{one.name} is {_side(one, leader.key)} {first.name} ({numbers.points(one.versus[leader.key])} points, paired)"
        for one in found.shared
        if one.set == found.sets[0] and leader.key in one.versus
    ]
    paired = f": {'; '.join(verdicts)}" if verdicts else ", on problems that cannot be paired"
    return f"{leader.name} solves {', '.join(scores)} of the {found.sets[0]} problems{paired}."


def _side(one: Shared, key: str) -> str:
    estimate = one.versus[key]
    if not estimate.excludes_zero:
        return "not distinguishable from"
    return "better than" if estimate.value > 0 else "worse than"


def sections(found: RunsComparison) -> list[Section]:
    """Return everything below the picture."""
    others = [f"Only in {run.name}: {', '.join(run.other_sets)}." for run in found.runs if run.other_sets]
    results = [_set_section(found, place) for place in range(len(found.sets))]
    if others:
        results.append(Section("Sets that not all runs have", others))
    return [*results, *_sizes(found), _changes(found), _costs(found), _runs(found)]


def _set_section(found: RunsComparison, place: int) -> Section:
    name = found.sets[place]
    shared = [one for one in found.shared if one.set == name]
    return Section(f"Results on {name}", [_said(one) for one in shared], [("", results_table(found, place))])


def _said(one: Shared) -> str:
    """Say how far two runs answered the same problems."""
    pair = f"{one.name} and {one.first}"
    if one.common == one.problems == one.others:
        return f"{pair} answered the same {one.common:,} problems: their differences are paired."
    if one.common:
        return (
            f"{pair} have {one.common:,} problems in common (of {one.problems:,} and {one.others:,}): differences are paired on those "
            "alone, so they need not be the differences of the scores beside them."
        )
    return (
        f"{pair} have no problem in common: no paired difference can be given, and scores on different problems need not be comparable. "
        "Look at each row's own difference to its base."
    )


def results_table(found: RunsComparison, place: int) -> Table:
    """Return the rows of all runs on a set, the same row of each run below each other."""
    first = found.runs[0]
    comparisons = [run.comparisons[place] for run in found.runs]
    keys = list(dict.fromkeys(row.key for comparison in comparisons for row in comparison.rows))
    versus = {one.name: one.versus for one in found.shared if one.set == found.sets[place]}
    rows = [
        _row(row, run, comparison, versus.get(run.name, {}))
        for key in keys
        for run, comparison in zip(found.runs, comparisons)
        if (row := comparison.row(key)) is not None
    ]
    level = f"{100 * comparisons[0].confidence:g} %"
    notes = [
        f"In brackets: {level} intervals. Differences in points of avg@k: {numbers.ABOVE} above, {numbers.BELOW} below by more than the "
        f"interval, {numbers.UNCLEAR} cannot be told apart. Where samples, sampling or grader differ (see below), so does "
        "what is measured.",
    ]
    return Table(["Model", "avg@k", "pass@k", "vs its own Base", "rgr_vs_student_base", f"vs {first.name}, paired"], rows, notes)


def _row(row: Row, run: RunResult, comparison: Comparison, versus: dict[str, Estimate]) -> list[Cell]:
    top_k = max(comparison.pass_k)
    avg, passed = row.figures["avg"], row.figures[f"pass@{top_k}"]
    gap = row.rgr_vs_student_base
    return [
        Cell(row.name, run.name),
        Cell(numbers.percent(avg), f"{numbers.interval(avg)} k={comparison.samples_per_prompt}"),
        Cell(numbers.percent(passed), f"{numbers.interval(passed)} k={top_k}"),
        _difference(row.versus.get("base")),
        Cell("–") if gap is None else Cell("refused") if gap.ratio is None else Cell(numbers.ratio(gap.ratio)),
        _difference(versus.get(row.key)),
    ]


def _difference(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("–")
    value, limits = numbers.points(estimate).split(" ", 1)
    return Cell(value, limits, numbers.mark(estimate))


def _sizes(found: RunsComparison) -> list[Section]:
    """Return the students by size, smallest first; nothing when all have the same."""
    sized = sorted(found.runs, key=lambda run: run.size.parameters)
    if len({run.size.parameters for run in sized}) < 2:
        return []
    keys = {row.key: row.name for run in sized for row in run.comparisons[0].rows if row.kind != "teacher"}
    rows = [
        [
            Cell(run.name, f"{numbers.size(run.size.parameters)} parameters"),
            *(_score(run.comparisons[0].row(key)) for key in keys),
            Cell(f"{run.size.tokens / run.size.device_seconds:,.0f}" if run.size.device_seconds else "–"),
        ]
        for run in sized
    ]
    notes = ["avg@k, and the difference to the run's own base: what the same method gives a smaller and a larger student."]
    table = Table(["Run", *keys.values(), "Training tokens / device-s"], rows, notes)
    return [Section("Students by size", [f"On {found.sets[0]}, smallest student first."], [("", table)])]


def _score(row: Row | None) -> Cell:
    if row is None:
        return Cell("–")
    gain = row.versus.get("base")
    return Cell(
        numbers.percent(row.figures["avg"]), "" if gain is None else f"{numbers.points(gain)} points", numbers.mark(gain) if gain else ""
    )


def _changes(found: RunsComparison) -> Section:
    if not found.changes:
        return Section("What differs in the configurations", ["Nothing: the runs have the same configuration."])
    rows = [
        [Cell(change.key), *(Cell(value if len(value) <= 200 else f"{value[:200]} …") for value in change.values)]
        for change in found.changes
    ]
    table = Table(["Key", *(run.name for run in found.runs)], rows, ["Keys with the same value in all runs are left out."])
    return Section("What differs in the configurations", [], [("", table)])


def _costs(found: RunsComparison) -> Section:
    stages = list(dict.fromkeys(cost.stage for run in found.runs for cost in run.costs.stages))
    by_stage = [
        [Cell(stage), *(_usage(next((c.usage for c in run.costs.stages if c.stage == stage), Usage()), run) for run in found.runs)]
        for stage in stages
    ]
    by_stage.append([Cell("all"), *(_usage(Usage.sum(cost.usage for cost in run.costs.stages), run) for run in found.runs)])
    keys = {cost.key: cost.name for run in found.runs for cost in run.costs.students}
    by_student = [
        [Cell(name, what), *(_of_student(run, key, with_traces) for run in found.runs)]
        for key, name in keys.items()
        for what, with_traces in (("training alone", False), ("with its teachers' traces", True))
    ]
    headings = [run.name for run in found.runs]
    gaps = {run.name: Usage.sum(cost.usage for cost in run.costs.stages).gap for run in found.runs}
    notes = ["Device-seconds; below them money, where a run's configuration has prices."]
    notes += [f"Incomplete in {name}: {gap}." for name, gap in gaps.items() if gap]
    tables = [("By stage", Table(["Stage", *headings], by_stage, notes))]
    if by_student:
        tables.append(("Of one student", Table(["Student", *headings], by_student, [])))
    return Section("Costs", [], tables)


def _of_student(run: RunResult, key: str, with_traces: bool) -> Cell:
    cost = next((cost for cost in run.costs.students if cost.key == key), None)
    return Cell("–") if cost is None else _usage(cost.whole if with_traces else cost.training, run)


def _usage(usage: Usage, run: RunResult) -> Cell:
    seconds = "–" if usage.device_seconds is None else f"{usage.device_seconds:,.0f}"
    return Cell(seconds, money(usage.money, run.costs.currency) if usage.money is not None else "")


def _runs(found: RunsComparison) -> Section:
    rows = [[Cell(run.name), Cell(run.title), Cell(run.folder)] for run in found.runs]
    return Section("The runs", [], [("", Table(["Run", "Title", "Folder"], rows, ["Each has its own report.html with everything else."]))])

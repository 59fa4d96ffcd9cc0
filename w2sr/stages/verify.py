"""Stage `verify`: a verdict on every trace, row by row as in generate. What was judged while the traces were made is not judged again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cluster.pool import Pool
from w2sr.artifacts import StageDir
from w2sr.grading.audit import AUDIT, audit
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader, verification
from w2sr.grading.judge import ask_judge
from w2sr.grading.majority import ballots_of, count_votes
from w2sr.grading.remote import grade_remotely
from w2sr.grading.verdicts import EARLY, Sieve, Subject, batches
from w2sr.progress import Progress
from w2sr.records import Prompt, Trace, Verification
from w2sr.run import Run
from w2sr.tables import iter_table, num_rows, part_files, read_table, write_text
from w2sr.traces.recovery import remove_shards
from w2sr.traces.store import TraceStore

MANY_TRACES = 200_000  # so many are worth starting replicas for, where a cluster is at hand


@dataclass(frozen=True)
class _Open:
    """A teacher whose verdicts are not complete."""

    subject: Subject
    stage: StageDir
    store: TraceStore[Verification]
    progress: Progress

    def append(self, rows: Sequence[Verification]) -> None:
        self.store.append(rows)
        self.progress.advance(len(rows))


def subject_of(run: Run, name: str, num_prompts: int) -> Subject:
    """Return where the traces and the verdicts of teacher `name` are, of which there are samples for `num_prompts` prompts."""
    [teacher] = [teacher for teacher in run.config.teachers if teacher.name == name]
    return Subject(name, run.stage("generate", name), run.stage("verify", name), num_prompts * teacher.samples_per_prompt)


def run(run: Run) -> None:
    """Write verify/<teacher>/part-*.parquet and audit.json for every teacher.

    Counts: traces = correct + incorrect + unverifiable, and the same traces once more by reason ("reason_match", "reason_no_answer", ...);
    `first_correct` and `overwritten` (the first answer was right, the last is not) cut across them; `audited` and `audit_disagreements`.
    Requests on which the engine failed are no traces: they are `failed` here as in the generate stage (their rows say "error").
    """
    stages = {teacher.name: _stage(run, teacher.name) for teacher in run.config.teachers}
    todo = [name for name, stage in stages.items() if not stage.is_done()]
    for name in stages:
        if name not in todo:
            remove_shards(run.stage("verify", name))  # a kill between the manifest and their removal
    if not todo:
        return
    rows = read_table(run.stage("prompts") / "train.parquet", Prompt)
    prompts = {prompt.prompt_id: prompt for prompt in rows}
    with ExitStack() as stack:
        grader = stack.enter_context(Grader(run.config.verify))
        subjects = [(stages[name], subject_of(run, name, len(rows))) for name in todo]
        opened = [_open(stack, stage, subject, run) for stage, subject in subjects]
        sieve = Sieve(run.config.verify, prompts)
        _by_reference(run, opened, prompts, grader, sieve)
        if sieve:
            _without_reference(run, opened, prompts, grader, sieve)
        for item in opened:
            _finish(item, prompts, grader, run.config.verify)


def _stage(run: Run, name: str) -> StageDir:
    inputs = {"prompts": run.digest("prompts"), f"generate/{name}": run.digest("generate", name)}
    if run.config.verify.without_reference == "majority":  # all teachers vote
        inputs |= {f"generate/{teacher.name}": run.digest("generate", teacher.name) for teacher in run.config.teachers}
    return StageDir(run.stage("verify", name), "verify", run.config.verify.identity(), inputs)


def _open(stack: ExitStack, stage: StageDir, subject: Subject, run: Run) -> _Open:
    subject.discard_unless(subject.origin(run.config.verify, run.digest("prompts")))
    stage.begin()
    (subject.verdicts / EARLY).unlink(missing_ok=True)
    store = stack.enter_context(subject.open())
    total = sum(num_rows(part) for part in part_files(subject.traces))
    return _Open(subject, stage, store, stack.enter_context(Progress(f"verify {subject.name}", total, "traces", store.num_rows)))


def _by_reference(run: Run, opened: Sequence[_Open], prompts: Mapping[str, Prompt], grader: Grader, sieve: Sieve) -> None:
    config = run.config.verify
    many = sum(num_rows(part) for item in opened for part in part_files(item.subject.traces)) >= MANY_TRACES
    if config.where == "local" or (config.where == "auto" and not (many and run.config.cluster.address is not None)):
        for item in opened:
            for traces in batches(item.subject.unjudged(item.store)):
                item.append(grader.grade(sieve.pass_through(traces), prompts))
        return
    with run.ray(), Pool() as pool:
        for item in opened:
            ready = (sieve.pass_through(traces) for traces in batches(item.subject.unjudged(item.store)))
            waiting = (traces for traces in ready if traces)
            for rows in grade_remotely(pool, waiting, prompts, config, grader):
                item.append(rows)


def _without_reference(run: Run, opened: Sequence[_Open], prompts: Mapping[str, Prompt], grader: Grader, sieve: Sieve) -> None:
    """Judge the traces that were held back, by vote or by judge."""
    config = run.config.verify
    if config.judge is not None:
        for item in opened:
            for traces in batches(item.subject.unjudged(item.store)):
                found = [(trace, answers) for trace in traces if (answers := sieve.held_back(trace)) is not None]
                judged = ask_judge(config.judge, [(trace, answers.last, prompts[trace.prompt_id]) for trace, answers in found])
                rows = [verification(trace, answers, verdict, verdict) for (trace, answers), verdict in zip(found, judged, strict=True)]
                item.append([dataclasses.replace(row, first_verdict=None, first_reason=None, method="judge") for row in rows])
        return
    cast = (
        (trace.prompt_id, answers)
        for teacher in run.config.teachers
        for trace in iter_table(run.stage("generate", teacher.name), Trace)
        if (answers := sieve.held_back(trace)) is not None
    )
    metadata = {prompt_id: prompt.metadata for prompt_id, prompt in prompts.items() if prompt.answer is None}
    elections = count_votes(config.grader, ballots_of(cast), grader.judge, config.majority_min_answers, metadata)
    for item in opened:
        for traces in batches(item.subject.unjudged(item.store)):
            rows = []
            for trace in traces:
                answers, election = sieve.held_back(trace), elections[trace.prompt_id]
                assert answers is not None, "only what was held back is left"
                row = verification(trace, answers, election.judgement(answers.first), election.judgement(answers.last))
                rows.append(dataclasses.replace(row, method="majority", agreement=election.agreement))
            item.append(rows)


def _finish(item: _Open, prompts: Mapping[str, Prompt], grader: Grader, config: VerifyConfig) -> None:
    parts = item.store.finish()
    counts = _counts(row for part in parts for row in iter_table(part, Verification))
    report = audit(item.subject, prompts, grader, config.audit)
    counts |= {"audited": report.num_checked, "audit_disagreements": report.num_disagreements}
    path = item.subject.verdicts / AUDIT
    write_text(path, report.to_json())
    item.stage.finish(counts, [*parts, path])
    remove_shards(item.subject.verdicts)


def _counts(rows: Iterable[Verification] | Iterator[Verification]) -> dict[str, int]:
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    num_failed = first_correct = overwritten = 0
    for row in rows:
        if row.reason == "error":
            num_failed += 1
            continue
        verdicts[row.verdict] += 1
        reasons[f"reason_{row.reason}"] += 1
        first_correct += row.first_verdict == "correct"
        overwritten += row.first_verdict == "correct" and row.verdict != "correct"
    counts = {"traces": verdicts.total(), **{verdict: verdicts[verdict] for verdict in ("correct", "incorrect", "unverifiable")}}
    assert counts["traces"] == reasons.total()
    firsts = {"first_correct": first_correct, "overwritten": overwritten}
    return {**counts, "failed": num_failed, **firsts, **dict(sorted(reasons.items()))}

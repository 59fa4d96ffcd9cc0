"""Stage `curate`: from judged traces to the training sets that are compared. The pool is read twice, never held (curation/)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from w2sr.analysis.lexicon import ANY, words
from w2sr.artifacts import STARTED, StageDir, file_digest
from w2sr.curation.arms import Arm
from w2sr.curation.budget import budget_report
from w2sr.curation.facts import Facts, pass_rates
from w2sr.curation.human import Decision, HumanSource, as_trace, decisions_of, read_decisions, texts_of
from w2sr.curation.ledger import FILE as CONTAMINATION
from w2sr.curation.ledger import Hit, Ledger, eval_items
from w2sr.curation.pool import GOLD, GoldSource, Prompts, Source, TeacherSource
from w2sr.curation.rewrite import HESITATION, Rewriter
from w2sr.curation.scan import Decisions, Scanner
from w2sr.curation.waves import arms_of_pool, arms_of_wave
from w2sr.curation.write import write_arms
from w2sr.diagnosis.tally import extractor
from w2sr.errors import UserError
from w2sr.grading.grade import Grader
from w2sr.packing.lengths import LengthCounter
from w2sr.progress import Progress
from w2sr.prompts.waves import wave_bounds
from w2sr.records import Prompt, Verification
from w2sr.run import Run
from w2sr.stages.prompts import undone_by_user_error
from w2sr.tables import iter_table, write_table, write_text
from w2sr.teachers.models import model_folder, special_tokens_of


def run(run: Run) -> None:
    """Write curate/<arm>.parquet, rejects.parquet, funnel.json, contamination.{json,parquet} and budget.json.

    Counts: "traces", and for each arm "<arm>" (rows kept) and "<arm>_rejected"; both sum to the arm's candidates.
    """
    config = run.config.curate
    student = model_folder(run.config.student.model)
    special_tokens = special_tokens_of(student)
    rewriters = _rewriters(run)
    identity = {
        **config.identity(),
        "run_seed": run.config.seed,
        "teachers": sorted(teacher.name for teacher in run.config.teachers),
        "special_tokens": special_tokens,
        "style": run.config.student.style.identity(),
        **({"hesitation": _markers(run)} if rewriters else {}),
    }
    stage = StageDir(run.stage("curate"), "curate", identity, _inputs(run, student))
    if stage.is_done():
        return
    with undone_by_user_error(stage):
        prompts = Prompts.read(run.stage("prompts") / "train.parquet")
        sources, decisions = _sources(run, prompts)
        with Progress("curate", 2 * sum(source.num_rows for source in sources), "rows") as progress:
            scanner = _scanner(run, prompts, decisions, rewriters, progress.advance)
            facts = scanner.scan(sources)
            arms = arms_of_pool(facts, len(prompts), config)
            outputs = write_arms(stage.folder, arms, sources, prompts, facts, rewriters, progress.advance)
        outputs += _write_ledgers(stage.folder, facts, arms, scanner.ledger)
        rates = pass_rates(facts, len(prompts))
        budget = budget_report(facts, rates, config.budget.limits, config.budget.hard_pass_rate)
        outputs.append(_write_json(stage.folder / "budget.json", budget))
        counts = {"traces": int((~facts.of_source(GOLD)).sum())}
        for arm in arms:
            funnel = arm.funnel(facts.codes.names)
            counts |= {arm.name: funnel["kept"], f"{arm.name}_rejected": funnel["candidates"] - funnel["kept"]}
        stage.finish(counts, outputs)


def curate_wave(run: Run, wave: int, teachers: Sequence[Source], folder: Path) -> dict[str, Path]:
    """Write the arms of one wave (from 0) to `folder`, before the stage has its turn, and return their files by arm.

    `teachers` have the judged traces of this wave's prompts, all of them and no other, in the order that the stage will read them in. What
    is written are the rows that the stage's own files will have of this wave, in their order. Without curate.human. Raises UserError.
    """
    config, rewriters = run.config.curate, _rewriters(run)
    whole = Prompts.read(run.stage("prompts") / "train.parquet")
    bounds = wave_bounds(len(whole), config.waves)
    prompts = whole.some(bounds[wave], bounds[wave + 1])
    sources = [*teachers, *_gold(run, prompts)]
    facts = _scanner(run, prompts, decisions_of([]), rewriters, lambda _: None).scan(sources)
    arms = arms_of_wave(facts, len(prompts), config, wave)
    folder.mkdir(parents=True)
    write_arms(folder, arms, sources, prompts, facts, rewriters, lambda _: None)
    return {arm.name: folder / f"{arm.name}.parquet" for arm in arms}


def _scanner(run: Run, prompts: Prompts, decisions: Decisions, rewriters: dict[str, Rewriter], advance: Callable[[int], object]) -> Scanner:
    from transformers import AutoTokenizer

    config, student = run.config.curate, model_folder(run.config.student.model)
    counter = LengthCounter(AutoTokenizer.from_pretrained(student), run.config.student.style)
    ledger = Ledger(config.contamination, eval_items(run, _benchmarks(run)))
    return Scanner(config, prompts, ledger, counter, run.config.seed, special_tokens_of(student), decisions, rewriters, advance)


def _rewriters(run: Run) -> dict[str, Rewriter]:
    """Return what rewrites texts, by kind; empty without an arm that asks for it."""
    extract = extractor(run.config.verify.grader)
    return {kind: Rewriter(kind, _markers(run), extract) for kind in run.config.curate.rewrites}


def _markers(run: Run) -> list[str]:
    return [phrase for phrase in words(HESITATION, run.config.analyse.lexicon) if ANY not in phrase]


def _inputs(run: Run, student: Path) -> dict[str, str]:
    inputs = {"prompts": run.digest("prompts")}
    for teacher in run.config.teachers:
        inputs |= {f"{stage}/{teacher.name}": run.digest(stage, teacher.name) for stage in ("generate", "verify")}
    inputs["tokenizer"] = file_digest(student / "tokenizer.json") if (student / "tokenizer.json").is_file() else str(student)
    inputs |= {f"benchmarks/{name}": run.digest("benchmarks", name) for name in _benchmarks(run)}
    files = {"curate.human": run.config.curate.human} | {
        f"curate.contamination.files.{number}.path": file.path for number, file in enumerate(run.config.curate.contamination.files)
    }
    for key, name in files.items():
        if name is None:
            continue
        if not Path(name).is_file():
            raise UserError(f"{key}: there is no file {name} (relative paths start at {Path.cwd()})")
        inputs[key] = file_digest(Path(name))
    return inputs


def _benchmarks(run: Run) -> list[str]:
    """Return the benchmarks whose problems are looked for: those there were when the stage was begun.

    One that is added to a finished study must not make its arms stale; that it was not looked for is said where it is read and reported.
    """
    started = run.stage("curate") / STARTED
    if not started.exists():
        return [benchmark.name for benchmark in run.config.evaluate.benchmarks]
    inputs = json.loads(started.read_text(encoding="utf-8"))["inputs"]
    return sorted(name.removeprefix("benchmarks/") for name in inputs if name.startswith("benchmarks/"))


def _sources(run: Run, prompts: Prompts) -> tuple[list[Source], Decisions]:
    """Return everything arms can be made of, in an order that does not depend on how the teachers are listed."""
    names = sorted(teacher.name for teacher in run.config.teachers)
    teachers = [TeacherSource(name, run.stage("generate", name), run.stage("verify", name)) for name in names]
    sources: list[Source] = list(teachers)
    decisions: list[Decision] = []
    if run.config.curate.human is not None:
        decisions = read_decisions(Path(run.config.curate.human))
        sources.append(HumanSource(_judged(run, texts_of(decisions, _prompts_of(teachers, decisions)))))
    return [*sources, *_gold(run, prompts)], decisions_of(decisions)


def _gold(run: Run, prompts: Prompts) -> list[Source]:
    """Return the source of reference traces, if an arm is made of them."""
    return [GoldSource(prompts)] if any(arm.family == "gold" or "gold" in arm.mix for arm in run.config.curate.arms) else []


def _prompts_of(teachers: list[TeacherSource], decisions: list[Decision]) -> dict[str, str]:
    """Return the prompt of every trace that is decided on, as far as the run has it."""
    wanted = {decision.trace_id for decision in decisions}
    return {
        trace_id: prompt_id
        for teacher in teachers
        for table in teacher.batches()
        for trace_id, prompt_id in zip(table["trace_id"].to_pylist(), table["prompt_id"].to_pylist())
        if trace_id in wanted
    }


def _judged(run: Run, texts: list[tuple[Decision, str]]) -> list[tuple[Decision, Verification]]:
    """Return people's texts with verdicts: their own, or the grader's."""
    wanted = {prompt_id for _, prompt_id in texts}
    prompts = {
        prompt.prompt_id: prompt for prompt in iter_table(run.stage("prompts") / "train.parquet", Prompt) if prompt.prompt_id in wanted
    }
    missing = sorted(wanted - prompts.keys())
    if missing:
        raise UserError(f"curate.human: {missing[0]!r} is no training prompt of this run; give a prompt_id of prompts/train.parquet")
    with Grader(run.config.verify) as grader:
        verdicts = grader.grade([as_trace(decision, prompt_id) for decision, prompt_id in texts], prompts)
    judged = []
    for (decision, prompt_id), found in zip(texts, verdicts, strict=True):
        verdict, reason = (decision.verdict, "by_person") if decision.verdict is not None else (found.verdict, found.reason)
        judged.append((decision, Verification(found.trace_id, prompt_id, verdict, reason, found.first_answer, found.last_answer)))
    return judged


def _write_ledgers(folder: Path, facts: Facts, arms: list[Arm], ledger: Ledger) -> list[Path]:
    names = facts.codes.names
    pool: dict[str, int] = {}
    for code, name in enumerate(names):
        if code and (number := int((facts.defect == code).sum())):
            pool[name] = number
    funnel = {
        "traces": int((~facts.of_source(GOLD)).sum()),
        "defects": pool,
        "arms": {arm.name: arm.funnel(names) for arm in arms},
        "rewritten": {arm.name: _rewritten(arm, facts) for arm in arms if arm.rewrite is not None},
    }
    write_table(folder / "contamination.parquet", ledger.hits, Hit)
    return [
        _write_json(folder / "funnel.json", funnel),
        _write_json(folder / CONTAMINATION, ledger.summary()),
        folder / "contamination.parquet",
    ]


def _rewritten(arm: Arm, facts: Facts) -> dict[str, str | int]:
    """Return how the rows of an arm were rewritten: rows = changed + unchanged; `words` were removed from all together."""
    assert arm.rewrite is not None
    rewrites = facts.rewrites[arm.rewrite]
    changed = int(rewrites.changed[arm.rows].sum())
    refused = int((arm.status == facts.codes["not_rewritable"]).sum())
    words_removed = int(rewrites.words[arm.rows].sum())
    counts = {"changed": changed, "unchanged": len(arm.rows) - changed, "refused": refused, "words": words_removed}
    return {"rewrite": arm.rewrite, **counts}


def _write_json(path: Path, value: dict[str, Any]) -> Path:
    write_text(path, json.dumps(value, indent=1) + "\n")
    return path

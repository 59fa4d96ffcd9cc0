"""The report says what curation found: contamination with scores on all and on clean problems, and what length limits lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report_fake import fake_run
from w2sr.curation.ledger import contaminated_ids
from w2sr.grading.audit import AUDIT
from w2sr.records import Verification
from w2sr.reporting.html import render_html
from w2sr.reporting.markdown import render_markdown
from w2sr.reporting.report import collect
from w2sr.run import Run
from w2sr.stages import report
from w2sr.tables import iter_table, write_text

ONE_SEED = {"max_steps": 40, "seeds": [0]}


def with_ledger(folder: Path, dirty: list[str], policy: str = "report") -> Run:
    """A finished run in which these test problems are contaminated."""
    run = fake_run(folder, train=ONE_SEED)
    sets = {
        "test": {"questions": 120, "by_rule": {"ngram": len(dirty), "number": 0}, "contaminated": dirty},
        "<b>other</b>": {"questions": 5, "by_rule": {"ngram": 1, "number": 1}, "contaminated": ["9"]},
    }
    ledger = {"policy": policy, "training_prompts": 3, "training_traces": 11, "hits": 14, "listed": 14, "sets": sets}
    write_text(run.stage("curate") / "contamination.json", json.dumps(ledger))
    group = {"traces": 200, "truncated": 10, "longer_than": {"512": 40, "1024": 6, "2048": 0, "4096": 0}}
    group["tokens"] = {"median": 300, "p90": 700, "p99": 1200, "longest": 1900}
    groups = dict.fromkeys(("all", "hard", "correct", "hard_correct"), group)
    budget = {"hard_pass_rate": 0.25, "num_prompts": 30, "num_hard_prompts": 8, "groups": groups}
    write_text(run.stage("curate") / "budget.json", json.dumps(budget))
    report.run(run)
    return run


def found(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "report.json").read_text())["contamination"]  # type: ignore[no-any-return]


def test_scores_stand_on_all_problems_and_on_the_clean_ones(tmp_path: Path) -> None:
    dirty = [f"p{number:04d}" for number in range(0, 120, 3)]
    run = with_ledger(tmp_path, dirty)
    assert contaminated_ids(run, "test") == frozenset(dirty)
    assert contaminated_ids(run, "selection") == frozenset()
    contamination = found(run)
    assert (contamination["num_problems"], contamination["num_clean"]) == (120, 80)
    for score in contamination["scores"]:
        label = score["key"] if score["key"] in ("base", "base-cot", "teacher-small") else f"{score['key']}-seed0"
        rows = list(iter_table(run.stage("evaluate", "test", label) / "verdicts.parquet", Verification))
        for subset, kept in (("everything", rows), ("clean", [row for row in rows if row.prompt_id not in dirty])):
            right = sum(row.verdict == "correct" for row in kept)
            assert score[subset]["value"] == pytest.approx(right / len(kept)), score["key"]
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for words in ("All 120 problems", "The 80 clean ones", "3 training prompts and 11 traces hold such a question; they were kept"):
        assert words in page
        assert words in text
    assert "<b>other</b>" not in page
    assert "| Base |" in text[text.index("The 80 clean ones") :]


def test_without_a_contaminated_problem_the_results_are_said_to_be_clean(tmp_path: Path) -> None:
    run = with_ledger(tmp_path, [], policy="drop")
    assert found(run)["scores"] == []
    text = (tmp_path / "report.md").read_text()
    assert "All 120 test problems are clean" in text
    assert "they were rejected from every arm" in text


def test_without_a_clean_problem_no_score_is_given(tmp_path: Path) -> None:
    run = with_ledger(tmp_path, [f"p{number:04d}" for number in range(120)])
    assert found(run)["scores"] == []
    assert "None of the 120 test problems is clean" in (tmp_path / "report.md").read_text()


def test_the_budget_shows_the_limits_that_lose_something_and_one_more(tmp_path: Path) -> None:
    with_ledger(tmp_path, [])
    text = (tmp_path / "report.md").read_text()
    table = text[text.index("What a limit on length would lose") :]
    assert "&gt; 512 | &gt; 1,024 | &gt; 2,048 | Median" in table
    assert "| all traces | 200 | 5.0 % | 20.0 % | 3.0 % | 0.0 % | 300 | 1,900 |" in table
    assert "traces of hard prompts" in table


def test_a_run_without_a_ledger_has_a_report_without_the_section(tmp_path: Path) -> None:
    run = fake_run(tmp_path, train=ONE_SEED)
    report.run(run)
    assert found(run) is None
    assert contaminated_ids(run, "test") == frozenset()
    assert "Contamination" not in (tmp_path / "report.md").read_text()


def test_the_audit_of_the_verdicts_is_in_the_report(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    estimate = {"population": 25, "checked": 20, "no_opinion": 5, "disagreements": 1, "rate": 0.05, "low": 0.0013, "high": 0.2487}
    nothing = {"population": 1, "checked": 0, "no_opinion": 1, "disagreements": 0, "rate": None, "low": 0.0, "high": 1.0}
    estimates = {"false_positive": estimate, "false_negative": estimate, "right_but_unverifiable": nothing}
    write_text(run.stage("verify", "small") / AUDIT, json.dumps({"estimates": estimates, "cases": []}))
    found = collect(run)
    for page in (render_html(found), render_markdown(found)):
        assert "1 of 20" in page
        assert "5.0 %" in page
    assert found.as_json()["audits"]["small"]["estimates"]["false_positive"]["checked"] == 20


def test_without_a_teacher_that_can_be_asked_the_report_compares_with_the_base(tmp_path: Path) -> None:
    people = {"name": "people", "engine": {"kind": "recorded", "path": "traces.jsonl"}}
    found = collect(fake_run(tmp_path, teachers=[people]))
    assert found.comparison.teacher is None
    assert "for its teacher" not in found.headline
    assert "for the untuned base" in found.headline
    for page in (render_html(found), render_markdown(found)):
        assert "vs Base" in page
        assert "vs Teacher" not in page
    assert {sample.case for sample in found.samples} <= {"the student is right", "the student is wrong"}

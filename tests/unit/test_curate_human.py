"""People's decisions: what the file may say, what it may not, and what follows for the arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.curation_fake import make, row
from w2sr.curation.human import Decision, HumanSource, decisions_of, read_decisions, texts_of
from w2sr.errors import UserError
from w2sr.records import Verdict, Verification

WHO = {"editor": "ada", "edited_at": "2026-11-22T10:00:00Z"}
LINES: list[dict[str, Any]] = [
    {"decision": "edit", "trace_id": "t1", "text": "Better. #### 1", **WHO, "note": "clearer"},
    {"decision": "write", "prompt_id": "p3", "text": "New. #### 3", "verdict": "correct", **WHO},
    {"decision": "reject", "trace_id": "t2", **WHO},
    {"decision": "accept", "trace_id": "t3", **WHO},
]


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "people.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_kind_of_decision_is_read(tmp_path: Path) -> None:
    decisions = read_decisions(written(tmp_path, *LINES))
    assert [decision.decision for decision in decisions] == ["edit", "write", "reject", "accept"]
    found = decisions_of(decisions)
    assert (found.edited, found.rejected, found.accepted) == ({"t1"}, {"t2"}, {"t3"})
    prompts = {"t1": "p0", "t2": "p0", "t3": "p1"}
    assert [(decision.text, prompt) for decision, prompt in texts_of(decisions, prompts)] == [
        ("Better. #### 1", "p0"),
        ("New. #### 3", "p3"),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decision": "keep"}, r"line 1: decision: Input should be 'edit', 'write', 'reject' or 'accept'"),
        ({"text": " "}, "line 1: edit needs a text that is not empty"),
        ({"decision": "reject"}, "line 1: reject takes no text; to change it use edit"),
        ({"trace_id": None}, "line 1: edit needs the trace_id it is about"),
        ({"decision": "write"}, "line 1: write needs a prompt_id and no trace_id"),
        ({"edited_at": "2026-11-22T10:00:00"}, "has no time zone; write for example 2026-11-22T10:00:00Z"),
        ({"edited_at": "yesterday"}, "line 1: edited_at: "),
        ({"editor": ""}, "line 1: editor: "),
        ({"trace": "t1"}, "unknown key 'trace': did you mean 'trace_id'"),
        ({"verdict": "right"}, "line 1: verdict: Input should be 'correct', 'incorrect' or 'unverifiable'"),
    ],
)
def test_a_line_that_says_too_little_too_much_or_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_decisions(written(tmp_path, LINES[0] | changes))


def test_two_decisions_on_one_trace_are_refused_with_both_places(tmp_path: Path) -> None:
    twice = [LINES[0], LINES[1], {"decision": "accept", "trace_id": "t1", **WHO}]
    with pytest.raises(UserError, match=r"line 3: t1 is decided on already in .*line 1; keep one of the two lines"):
        read_decisions(written(tmp_path, *twice))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"people.csv is no .jsonl file; give one decision a line"):
        read_decisions(tmp_path / "people.csv")


def test_decisions_on_traces_that_are_not_there_or_answer_another_prompt_are_refused() -> None:
    unknown = Decision.model_validate(LINES[2])
    with pytest.raises(UserError, match="ada decided on trace 't2', which no teacher of this run wrote"):
        texts_of([unknown], {})
    elsewhere = Decision.model_validate(LINES[0] | {"prompt_id": "p9"})
    with pytest.raises(UserError, match="trace 't1' answers prompt 'p0', not 'p9'"):
        texts_of([elsewhere], {"t1": "p0"})


def judged(decision: Decision, prompt_id: str, verdict: Verdict) -> tuple[Decision, Verification]:
    return decision, Verification(decision.human_id(), prompt_id, verdict, "match", "1", "1")


def test_edits_take_the_place_of_their_traces_rejected_ones_leave_accepted_ones_count() -> None:
    rows = [row(prompt, 0, "incorrect" if prompt == 0 else "correct") for prompt in range(5)]
    ids = [one["row_id"] for one in rows]
    edit = Decision.model_validate(LINES[0] | {"trace_id": ids[0]})
    decisions = [edit, *(Decision.model_validate(LINES[n] | {"trace_id": ids[n - 1]}) for n in (2, 3)), Decision.model_validate(LINES[1])]
    people = HumanSource([judged(edit, "p0", "correct"), judged(decisions[-1], "p3", "unverifiable")])
    human = [one for table in people.batches() for one in table.to_pylist()]
    assert {one["row_id"]: one["edited_from"] for one in human} == {edit.human_id(): ids[0], decisions[-1].human_id(): None}
    arms = ["all", "correct", "human", {"name": "mix", "kind": "mixed", "mix": {"human": 1, "correct": 1}}]
    found = make([*rows, *human], arms=arms, decisions=decisions_of(decisions))
    assert set(found.kept("all")) == {ids[2], ids[3], ids[4], edit.human_id()}
    assert found.funnel("all") == {"candidates": 7, "kept": 4, "edited": 1, "match": 1, "rejected_by_person": 1}
    assert set(found.kept("correct")) == set(found.kept("all"))
    assert set(found.kept("human")) == {edit.human_id(), decisions[-1].human_id(), ids[2]}
    assert found.funnel("human") == {"candidates": 7, "kept": 3, "edited": 1, "not_human": 2, "rejected_by_person": 1}
    assert len(found.kept("mix")) == 4
    assert {ids[3], ids[4]} <= set(found.kept("mix"))


def test_the_id_of_a_text_depends_on_what_it_says_and_who_wrote_it() -> None:
    ids = {
        Decision.model_validate(LINES[1] | changes).human_id()
        for changes in ({}, {"editor": "bob"}, {"text": "Other. #### 3"}, {"prompt_id": "p4"})
    }
    assert len(ids) == 4
    assert Decision.model_validate(LINES[1] | {"note": "x"}).human_id() in ids

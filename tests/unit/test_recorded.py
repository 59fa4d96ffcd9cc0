"""Recorded traces as a teacher: who gets which row, what is counted, what is refused."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.prompts.files import read_rows
from w2sr.prompts.rows import Row
from w2sr.records import Prompt, Trace
from w2sr.tables import write_table
from w2sr.teachers.config import RecordedEngineConfig, SamplingConfig
from w2sr.teachers.engine import Completion, GeneratorSpec
from w2sr.teachers.recorded import RecordedEngine, RecordedPlan, RecordedTraces, RecordedWorkerFactory, recorded_source
from w2sr.teachers.requests import Arc

DATA = Path(__file__).parents[3] / "shared" / "data"


def config_of(path: Any = "traces.jsonl", **values: Any) -> RecordedEngineConfig:
    return RecordedEngineConfig(kind="recorded", path=str(path), **values)


def prompt_of(question: str, prompt_id: str | None = None) -> Prompt:
    return Prompt(prompt_id or f"id-{question}", "train", question, "1", None, "test", "{}")


def traces_of(rows: list[dict[str, Any]], **values: Any) -> RecordedTraces:
    return RecordedTraces(config_of(**values), (Row(f"row {number}", row) for number, row in enumerate(rows, start=1)))


def row(question: str | None, text: Any = "So 1.", **more: Any) -> dict[str, Any]:
    return {"question": question, "text": text, **more}


PROMPTS = [prompt_of(question) for question in ("a?", "b?", "c  c?", "d?")]
ROWS = [row("c\nc? ", "c0"), row("a?", "a0"), row("x?", "x0"), row("a?", "a1"), row(" a?", "a2"), row(None, "nobody's"), row("b?", "b0")]


def plan_of(traces: RecordedTraces, samples: int = 2, arc: Arc | None = None, prompts: list[Prompt] = PROMPTS) -> RecordedPlan:
    return RecordedPlan("people", prompts, samples, 0, arc, traces)


def completed(traces: RecordedTraces, plan: RecordedPlan) -> list[Completion]:
    requests = [plan.request_at(position) for position in plan.positions()]
    return asyncio.run(RecordedEngine(traces.config, traces).complete(requests))


def test_each_prompt_gets_its_rows_in_the_order_of_the_file() -> None:
    traces = traces_of(ROWS)
    plan = plan_of(traces)
    assert list(plan.positions()) == [0, 1, 2, 4]
    assert plan.num_requests == 4
    assert [completion.text for completion in completed(traces, plan)] == ["a0", "a1", "b0", "c0"]


def test_rows_and_prompts_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "w2sr"):
        plan_of(traces_of(ROWS))
    assert caplog.messages == [
        "teacher people: 4 of 7 recorded rows are traces of this teacher's prompts, 2 match none of them, 1 are beyond samples_per_prompt; "
        "1 of 4 prompts have no recorded trace"
    ]


@given(
    questions=st.lists(st.sampled_from(["a?", " b? ", "c c?", "c\tc?", "x", "", None])),
    asked=st.lists(st.sampled_from(["a?", "b?", "c  c?", "z?"]), unique=True),
    samples=st.integers(1, 4),
)
def test_counts_conserve_and_the_plan_agrees_with_them(questions: list[str | None], asked: list[str], samples: int) -> None:
    traces = traces_of([row(question, f"text {number}") for number, question in enumerate(questions)])
    prompts = [prompt_of(question) for question in asked]
    try:
        matching = traces.matching(prompts, samples)
    except UserError:
        assert not {" ".join(question.split()) for question in asked} & {" ".join((question or "").split()) for question in questions}
        return
    assert matching.rows == matching.used + matching.surplus + matching.unmatched == len(questions)
    assert matching.prompts == matching.prompts_with + matching.prompts_without == len(asked)
    plan = plan_of(traces, samples, prompts=prompts)
    completions = completed(traces, plan)
    assert plan.num_requests == matching.used == len(completions) == len({completion.text for completion in completions})
    assert all(completion.finish_reason == "stop" for completion in completions)


def test_rows_can_be_found_by_the_prompts_id() -> None:
    traces = traces_of([{"id": 7, "text": "seven"}, {"id": "eight", "text": "8"}], match="prompt_id", fields={"prompt_id": "id"})
    prompts = [prompt_of("q", "eight"), prompt_of("r", "7")]
    assert [completion.text for completion in completed(traces, plan_of(traces, prompts=prompts))] == ["8", "seven"]


def test_what_stands_around_the_question_is_taken_off() -> None:
    traces = traces_of(
        [row("Question: a?\nAnswer:", "a0"), row("Question:  b?\n\nAnswer: ", "b0")], question_format="Question: {question}\nAnswer:"
    )
    assert [completion.text for completion in completed(traces, plan_of(traces))] == ["a0", "b0"]


def test_only_prompts_on_the_teachers_arc_are_asked() -> None:
    traces = traces_of([row(f"q{number}") for number in range(20)])
    prompts = [prompt_of(f"q{number}") for number in range(20)]
    halves = [plan_of(traces, 1, Arc(start, 0.5), prompts).members for start in (0.0, 0.5)]
    assert sorted(halves[0] + halves[1]) == list(range(20))
    assert len(halves[0]) == 10


def test_two_prompts_with_one_question_share_its_rows() -> None:
    traces = traces_of([row("a?", "a0")])
    plan = plan_of(traces, prompts=[prompt_of("a?", "p1"), prompt_of("a? ", "p2")])
    assert [completion.text for completion in completed(traces, plan)] == ["a0", "a0"]


def test_columns_become_what_a_trace_has() -> None:
    fields = {"question": "q", "text": "cot", "answer": "a", "finish_reason": "why", "num_tokens": "n"}
    rows = [
        {"q": "a?", "cot": "1 + 1", "a": 2, "why": "stop", "n": 9},
        {"q": "a?", "cot": "1 + 1", "a": None, "why": "length", "n": 0},
        {"q": "a?", "cot": "", "a": "2", "why": "stop", "n": 3},
        {"q": "a?", "cot": "half", "a": "2", "why": "error", "n": 3},
    ]
    traces = traces_of(rows, fields=fields, answer_format="\n\\boxed{answer}")
    assert completed(traces, plan_of(traces, 4)) == [
        Completion("1 + 1\n\\boxed2", "stop", 0, 9),
        Completion("1 + 1", "length", 0, 0),
        Completion("", "error", 0, 0, "the recorded text is empty"),
        Completion("", "error", 0, 0, "recorded as an error"),
    ]


def test_a_trace_that_is_not_there_is_said_when_it_is_asked_for_all_the_same() -> None:
    traces = traces_of(ROWS)
    plan = plan_of(traces)
    (completion,) = asyncio.run(RecordedEngine(traces.config, traces).complete([plan.request_at(3)]))
    assert completion == Completion("", "error", 0, 0, "there are 1 recorded traces of this prompt")


def test_nothing_that_matches_is_refused_with_an_example_of_each() -> None:
    with pytest.raises(
        UserError, match=r"none of the 1 rows of traces.jsonl has the question of one of the 4 training prompts.*'Q: a\?'.*'a\?'"
    ):
        plan_of(traces_of([row("Q: a?")]))
    with pytest.raises(UserError, match="none of the 0 rows"):
        plan_of(traces_of([]), prompts=[])


BAD_ROWS = [
    ({"question": "a?"}, {}, r"row 1: no column 'text'; columns there: question. Say which column it is with engine.fields.text"),
    ({}, {}, r"row 1: no column 'question'; columns there: none"),
    (row("a?", ["x"]), {}, r"row 1: column 'text' \(text\) holds list, \['x'\]; it must be text"),
    (row("a?", True), {}, "holds bool"),
    (row("a?", "half \ud83d"), {}, "holds half a character at position 5"),
    (row("a?", why="bored"), {"finish_reason": "why"}, r"column 'why' \(finish_reason\) holds 'bored'; allowed: stop, length, error"),
    (row("a?", n=-1), {"num_tokens": "n"}, r"column 'n' \(num_tokens\) holds -1; it must be a whole number"),
    (row("a?", n=2**31), {"num_tokens": "n"}, r"must be a whole number below 2\*\*31"),
    (row("a?", n=1.5), {"num_tokens": "n"}, "it must be a whole number"),
    (row("a?"), {"answer": "a"}, r"no column 'a'.*engine.fields.answer"),
]


@pytest.mark.parametrize(("bad", "fields", "message"), BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named(bad: dict[str, Any], fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        traces_of([bad], fields=fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"match": "prompt_id"}, "match: prompt_id needs fields.prompt_id"),
        ({"fields": {"question": None}}, "match: question needs fields.question"),
        ({"question_format": "Question:"}, "must hold {question} once"),
        ({"answer_format": "{answer} {answer}"}, "must hold {answer} once"),
        ({"fields": {"txt": "a"}}, "did you mean 'text'"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config_of(**values)
    assert message in caught.value.errors()[0]["msg"]


# ---- where they are read from


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_all_kinds_give_the_same_traces(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = write_jsonl(tmp_path / "t.jsonl", ROWS)
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    found = [traces_of([values.values for values in read_rows(lines)])]
    found += [RecordedTraces.read(config_of(tmp_path / name)) for name in ("t.jsonl", "t.json", "t.parquet")]
    assert len({str(completed(traces, plan_of(traces))) for traces in found}) == 1


def test_the_traces_of_an_earlier_run_are_read_from_its_folder(tmp_path: Path) -> None:
    def trace(number: int, text: str, finish_reason: Any) -> Trace:
        return Trace(f"t{number}", f"p{number}", "old", 0, text, finish_reason, 3, 5, 0, "", "", "hf", None)

    write_table(tmp_path / "part-00000.parquet", [trace(0, "zero", "stop")], Trace)
    write_table(tmp_path / "part-00001.parquet", [trace(1, "one", "length"), trace(2, "", "error")], Trace)
    fields = {"question": None, "prompt_id": "prompt_id", "finish_reason": "finish_reason", "num_tokens": "num_tokens"}
    traces = RecordedTraces.read(config_of(tmp_path, match="prompt_id", fields=fields))
    plan = plan_of(traces, 1, prompts=[prompt_of("q", f"p{number}") for number in range(3)])
    assert completed(traces, plan) == [
        Completion("zero", "stop", 0, 5),
        Completion("one", "length", 0, 5),
        Completion("", "error", 0, 0, "recorded as an error"),
    ]


def test_a_datasets_folder_is_read_and_its_absence_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "data" / "train.jsonl", ROWS)
    traces = RecordedTraces.read(config_of(tmp_path / "data"))
    assert len(completed(traces, plan_of(traces))) == 4
    with pytest.raises(
        UserError, match=r"cannot load dataset .*'validation'.*Check the recorded teacher's engine \(path, name, split, revision\)"
    ):
        RecordedTraces.read(config_of(tmp_path / "data", split="validation"))


def test_a_source_has_a_digest_of_its_bytes(tmp_path: Path) -> None:
    one, other = (write_jsonl(tmp_path / name / "t.jsonl", ROWS[:count]) for name, count in (("a", 1), ("b", 2)))
    digests = [recorded_source(config_of(path))[1] for path in (one, other, one.parent, other.parent)]
    assert len(set(digests)) == 4
    assert recorded_source(config_of("owner/name"))[0] == "owner/name"
    pinned = recorded_source(config_of("owner/name", revision="v1"))[1]
    assert pinned != recorded_source(config_of("owner/name"))[1]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.jsonl does not exist; give a .json, .jsonl or .parquet file, a folder"):
        RecordedTraces.read(config_of(tmp_path / "nothing.jsonl"))
    (tmp_path / "torn.jsonl").write_text('{"question": "a?", "te')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        RecordedTraces.read(config_of(tmp_path / "torn.jsonl"))


def test_a_worker_serves_the_file_of_its_spec_under_its_origin(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", ROWS)

    async def serve(config: RecordedEngineConfig) -> tuple[str, str, list[str]]:
        worker = RecordedWorkerFactory()()
        await worker.load(GeneratorSpec("people", str(path), "digest", PromptStyle(), SamplingConfig(max_new_tokens=1), config))
        traces = RecordedTraces.read(config)
        plan = plan_of(traces)
        made = await worker.run([plan.request_at(position) for position in plan.positions()])
        await worker.close()
        return made.engine, made.model, [completion.text for completion in made.completions]

    assert asyncio.run(serve(config_of(path))) == ("recorded", "t.jsonl", ["a0", "a1", "b0", "c0"])
    assert asyncio.run(serve(config_of(path, origin="two people")))[1] == "two people"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not there: {DATA}")
def test_real_traces_of_a_weak_teacher_find_their_prompts() -> None:
    from w2sr.prompts.config import FieldMap
    from w2sr.prompts.rows import candidates_of

    candidates = candidates_of(read_rows(DATA / "gsm8k" / "train.jsonl"), FieldMap(), "gsm8k")
    prompts = [candidate.in_split("train") for candidate in candidates]
    fields = {"question": "content", "text": "output"}
    config = config_of(DATA / "traces" / "gsm8k_gemma_2b_weak.json", fields=fields, question_format="Question: {question}\nAnswer:")
    traces = RecordedTraces.read(config)
    matching = traces.matching(prompts, 1)
    assert (matching.rows, matching.used, matching.surplus, matching.unmatched) == (7000, 3737, 0, 3263)
    assert (matching.prompts_with, matching.prompts_without) == (3737, 7473 - 3737)
    plan = plan_of(traces, 1, prompts=prompts)
    assert len({completion.text for completion in completed(traces, plan) if completion.finish_reason == "stop"}) > 3700

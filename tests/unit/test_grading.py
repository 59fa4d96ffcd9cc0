"""Grading: which answer is final, when two answers are the same, and what hostile answers cannot do."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.grading.config import VerifyConfig
from w2sr.grading.extract import Answers, extract_answers, reference_answer
from w2sr.grading.grade import Grader
from w2sr.grading.graders import Question, judge_by_scorer, judge_cheaply, judge_exact
from w2sr.grading.numbers import parse_number
from w2sr.records import FinishReason, Prompt, Trace, Verification

DATA = Path(__file__).parents[3] / "shared" / "data"
EXACT, MATH, GYM = VerifyConfig(grader="exact"), VerifyConfig(grader="math"), VerifyConfig(grader="reasoning_gym")


def grade_traces(traces: list[Trace], prompts: dict[str, Prompt], config: VerifyConfig) -> list[Verification]:
    with Grader(config) as grader:
        return grader.grade(traces, prompts)


def prompt_of(number: int, answer: str | None, metadata: str = "{}") -> Prompt:
    return Prompt(f"p{number}", "train", "?", answer, None, "file", metadata)


def trace_of(number: int, text: str, finish_reason: FinishReason = "stop") -> Trace:
    return Trace(f"t{number}", f"p{number}", "weak", 0, text, finish_reason, 1, 1, 0, "h", "d", "e", None)


def grade(pairs: list[tuple[str, str | None]], config: VerifyConfig) -> list[Verification]:
    """Judge (completion, reference answer) pairs."""
    prompts = [prompt_of(number, reference) for number, (_, reference) in enumerate(pairs)]
    traces = [trace_of(number, text) for number, (text, _) in enumerate(pairs)]
    return grade_traces(traces, {prompt.prompt_id: prompt for prompt in prompts}, config)


def verdict(answer: str, reference: str | None, config: VerifyConfig = EXACT) -> tuple[str, str]:
    found = grade([(f"\\boxed{{{answer}}}", reference)], config)[0]
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}} or \boxed{\{1, 2\}}", (r"\frac{1}{2}", r"\{1, 2\}")),
        (r"\boxed{\boxed{3}}", ("3", "3")),
        (r"\fbox{4} then \boxed {5}", ("4", "5")),
        (r"in JSON: \\boxed{7}", ("7", "7")),
        (r"} {{ \boxed{1}", ("1", "1")),
        (r"\boxed{} #### 8", ("8", "8")),
        (r"#### 3 but \boxed{4} wins over #### 5", ("4", "4")),
        ("<answer> 5 </answer> <ANSWER>6</ANSWER> <answer>", ("5", "6")),
        ("</answer><answer>9</answer> #### 1", ("9", "9")),
        ("work\n#### 72\nmore\n####  1,080 ", ("72", "1,080")),
        ("The answer is 1.5. That is all", ("1.5", "1.5")),
        ("**Answer:** 72\nThe final answer is: 73.", ("72", "73")),
    ],
)
def test_the_strongest_mark_gives_the_first_and_last_answer(text: str, expected: tuple[str, str]) -> None:
    assert extract_answers(text) == Answers(*expected)


@pytest.mark.parametrize("text", ["", "72", r"\boxed{\frac{1}{2", "##### 7", "#### ", "<answer>5", "#### \n5", "no answer here"])
def test_a_text_without_a_complete_mark_has_no_answer(text: str) -> None:
    assert extract_answers(text) is None


@given(st.text(alphabet="{}\\boxed <answer>/#is:.\n12", max_size=200))
def test_extraction_never_fails_and_answers_are_parts_of_the_text(text: str) -> None:
    found = extract_answers(text)
    if found is not None:
        assert found.first in text
        assert found.last.strip()


def test_extraction_is_linear_on_megabytes_of_marks() -> None:
    began = time.monotonic()
    for bomb in (r"\boxed{" * 150_000, r"\boxed{" * 150_000 + "}" * 150_000, "<answer>" * 125_000, "#" * 1_000_000, "answer is " * 100_000):
        extract_answers(bomb)
    for bomb in ("{" * 1_000_000, "\\" * 1_000_000, "answer" + " " * 1_000_000, "####" + " " * 1_000_000, r"\boxed" + " " * 1_000_000):
        extract_answers(bomb)
    assert time.monotonic() - began < 20


def test_a_reference_solution_gives_its_final_answer() -> None:
    assert reference_answer("2+2=<<2+2=4>>4\n#### 4") == "4"
    assert reference_answer(r"thus \boxed{x+1}.") == "x+1"
    assert reference_answer(r" \frac{1}{2} ") == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,200", "1200"),
        ("27", "27.0"),
        ("007", "7"),
        (".50", "0.5"),
        ("1e3", "1000"),
        ("$18", "18"),
        ("+3", "3"),
        ("−3", "-3"),
        ("72.", "72"),
    ],
)
def test_the_same_number_written_differently_is_correct(one: str, other: str) -> None:
    assert verdict(one, other) == verdict(other, one) == ("correct", "match")
    assert verdict(one, other, MATH) == ("correct", "match")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("50", "0.5"), ("0.5", "50"), ("-3", "3"), ("1,20", "120"), ("0.333333", "1/3"), ("2.0000001", "2"), ("", "0")],
)
def test_no_tolerance_makes_different_numbers_equal(answer: str, reference: str) -> None:
    assert judge_exact(answer, reference) == ("incorrect", "mismatch")


@pytest.mark.parametrize("text", ["", "+", ".", "e5", "1/0", "50%", "5 apples", "1" * 101, "1e999999999", "x", "1 2", r"\frac{1}{0}"])
def test_what_is_no_plain_number_is_not_read_as_one(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_exactly_when_their_values_are(one: int, other: int) -> None:
    assert (judge_exact(f"{one:,}", str(other)).verdict == "correct") == (one == other)
    assert judge_exact(f"{one:,}", f"{one}.00").verdict == "correct"


def test_math_answers_are_compared_as_expressions() -> None:
    right = [
        (r"\frac{1}{2}x", "x/2"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(3,\\pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"$\frac12$", "0.5"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"137\frac{1}{2}", "275/2"),
    ]
    wrong = [("2x", "x/2"), ("50", "0.5"), ("(2,1)", "(1,2)"), (r"\frac{1}{3}", "0.333333"), ("2", r"\sqrt{2}")]
    found = grade([(f"\\boxed{{{answer}}}", reference) for answer, reference in [*right, *wrong]], MATH)
    assert [row.verdict for row in found] == ["correct"] * len(right) + ["incorrect"] * len(wrong)


def test_what_cannot_be_parsed_is_unverifiable_and_not_wrong() -> None:
    pairs = [
        ("<answer>\\frac{1}{</answer>", "5"),
        ("#### 120 200", "320"),
        ("#### 320", "120 200"),
        ("#### " + "x" * 2000, "5"),
        ("#### 2", "\\frac{1}{"),
    ]
    reasons = ["unparsable", "unparsable", "unparsable_reference", "unparsable", "unparsable_reference"]
    found = grade(pairs, MATH)
    assert [(row.verdict, row.reason) for row in found] == [("unverifiable", reason) for reason in reasons]
    assert found[3].last_answer is not None
    assert len(found[3].last_answer) == 500


def test_without_an_answer_the_reason_says_why() -> None:
    prompts = {"p0": prompt_of(0, "5"), "p1": prompt_of(1, None)}
    traces = [
        trace_of(0, "hm"),
        trace_of(0, "hm", "length"),
        trace_of(0, "", "error"),
        trace_of(1, "#### 5"),
        trace_of(0, "#### 5 ", "length"),
    ]
    found = grade_traces(traces, prompts, EXACT)
    assert [row.reason for row in found] == ["no_answer", "truncated", "error", "no_reference", "match"]
    assert [row.verdict for row in found] == ["unverifiable"] * 4 + ["correct"]


def test_the_last_answer_decides_and_the_first_is_kept() -> None:
    found = grade([("#### 4\n#### 5", "4")], EXACT)[0]
    assert (found.verdict, found.first_answer, found.last_answer) == ("incorrect", "4", "5")


def gym_prompt(number: int, task: str, **params: object) -> Prompt:
    from reasoning_gym import create_dataset

    item = create_dataset(task, seed=1, size=1, **params)[0]
    return prompt_of(number, item["answer"], json.dumps({"task": task, "params": params, "item": item}))


def test_reasoning_gym_answers_are_judged_by_the_tasks_own_scorer() -> None:
    prompts = [gym_prompt(0, "chain_sum"), gym_prompt(1, "countdown"), gym_prompt(2, "countdown")]
    texts = [f"#### {prompts[0].answer}.0", f"#### {prompts[1].answer}", "#### 9**9**9**9 + __import__('os')"]
    traces = [trace_of(number, text) for number, text in enumerate(texts)]
    found = grade_traces(traces, {prompt.prompt_id: prompt for prompt in prompts}, GYM.model_copy(update={"timeout_s": 3.0}))
    assert [row.verdict for row in found[:2]] == ["correct", "correct"]
    assert found[2].verdict != "correct"


@pytest.mark.parametrize("answer", ["7", "-1,000.50", "So 3 + 4 = 7; 7 - 9 = -2", "#### 3"])
def test_harmless_reasoning_gym_answers_start_no_process(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("w2sr.grading.graders._scorer", lambda _: lambda given: float(given == answer))
    assert judge_cheaply(Question("reasoning_gym", answer, "{}")) == ("correct", "match")


@pytest.mark.parametrize("answer", ["9**9**9", "9^9", "1e999999999", "factorial(9)", "9!", "1/3", "x" * 65, "a\nb"])
def test_other_reasoning_gym_answers_wait_for_a_killable_process(answer: str) -> None:
    assert judge_cheaply(Question("reasoning_gym", answer, "{}")) is None


def test_an_answer_on_which_the_scorer_raises_is_unparsable(monkeypatch: pytest.MonkeyPatch) -> None:
    def scorer(answer: str) -> float:
        raise IndexError(answer)

    monkeypatch.setattr("w2sr.grading.graders._scorer", lambda _: scorer)
    assert judge_by_scorer("5", "{}").reason == "unparsable"
    monkeypatch.setattr("w2sr.grading.graders._scorer", lambda _: None)
    assert judge_by_scorer("5", "{}").reason == "no_reference"


def test_the_reasoning_gym_grader_refuses_other_prompts() -> None:
    with pytest.raises(UserError, match=r"prompt 'p0' comes from 'file'; use verify.grader: math or exact"):
        grade([("#### 5", "5")], GYM)


def test_plain_numbers_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("w2sr.grading.workers.GradingPool._start", start)
    pairs: list[tuple[str, str | None]] = [(f"#### {n}", str(n - n % 2)) for n in range(2000)]
    assert Counter(row.verdict for row in grade(pairs, MATH)) == {"correct": 1000, "incorrect": 1000}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not there: {DATA}")
def test_real_traces_of_a_weak_teacher_are_judged_as_counted_by_hand() -> None:
    """960 right, 2,508 wrong, 269 without `####`. Two of the 269 say "the answer is ..." instead (both wrong): hence 2,510 and 267."""
    solutions = {}
    for line in (DATA / "gsm8k" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        solutions[row["question"]] = row["answer"]
    pairs: list[tuple[str, str | None]] = []
    for row in json.loads((DATA / "traces" / "gsm8k_gemma_2b_weak.json").read_text()):
        question = row["content"].removeprefix("Question: ").removesuffix("\nAnswer:")
        if question in solutions:
            pairs.append((row["output"], reference_answer(solutions[question])))
    exact, math = grade(pairs, EXACT), grade(pairs, MATH)
    assert Counter(row.reason for row in exact) == {"match": 960, "mismatch": 2510, "no_answer": 267}
    # Five answers that are no single expression ("66.67 33.34", "-") are unverifiable, not wrong: docs/results/gsm8k_weak_teacher.md.
    assert Counter(row.reason for row in math) == {"match": 960, "mismatch": 2505, "no_answer": 267, "unparsable": 5}


def test_one_grader_serves_many_calls() -> None:
    with Grader(MATH) as grader:
        prompts = {"p0": prompt_of(0, "x/2")}
        first = grader.grade([trace_of(0, "#### 0.5x")], prompts)
        second = grader.grade([trace_of(0, "#### 2x")], prompts)
    assert [row.verdict for row in first + second] == ["correct", "incorrect"]

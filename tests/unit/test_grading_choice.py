"""Multiple choice: which letter an answer names."""

import json

import pytest

from w2sr.grading.choice import extract_choices, letter_of, options_of
from w2sr.grading.config import VerifyConfig
from w2sr.grading.extract import Answers
from w2sr.grading.grade import Grader
from w2sr.grading.graders import judge_choice
from w2sr.records import Prompt, Trace

OPTIONS = json.dumps({"options": ["3 cm", r"\frac{1}{2}", "a Triangle", "None of these"]})
BLOOD = json.dumps({"choices": {"A": "B", "B": "AB", "C": "A", "D": "0"}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\text{(B)}}", (r"\text{(B)}", r"\text{(B)}")),
        ("The answer is (C). Done", ("(C)", "(C)")),
        ("It could be (A), but it must be (B)", ("A", "B")),
        ("Thinking about A...\n**D**\n", ("D", "D")),
        ("First (A).\n#### C", ("C", "C")),
    ],
)
def test_a_completion_gives_the_letter_it_ends_on(text: str, expected: tuple[str, str]) -> None:
    assert extract_choices(text) == Answers(*expected)


@pytest.mark.parametrize("text", ["", "A triangle has three sides", "I do not know", "f(x) = (X)y"])
def test_a_completion_without_a_letter_has_no_answer(text: str) -> None:
    assert extract_choices(text) is None


@pytest.mark.parametrize(
    "answer", ["B", "(B)", "b", "B.", "(b)", r"\text{(B)}", r"\textbf{B}", "B) one half", "option B", r"\frac{1}{2}", "**B**", "$B$"]
)
def test_a_letter_may_be_written_in_many_ways_or_be_the_options_text(answer: str) -> None:
    assert letter_of(answer, options_of(OPTIONS)) == "B"


@pytest.mark.parametrize("answer", ["a triangle", "A TRIANGLE.", r"\text{a triangle}"])
def test_the_text_of_an_option_names_it_although_it_begins_with_another_letter(answer: str) -> None:
    assert letter_of(answer, options_of(OPTIONS)) == "C"


@pytest.mark.parametrize("answer", ["E", "5", "A or B", "AB", "", "Bob", "not B"])
def test_what_names_no_option_is_no_letter(answer: str) -> None:
    assert letter_of(answer, options_of(OPTIONS)) is None


def test_options_that_look_like_letters_are_texts_first() -> None:
    assert letter_of("A", options_of(BLOOD)) == "C"
    assert judge_choice("AB", "B", BLOOD).verdict == "incorrect"


def test_the_reference_may_be_a_letter_or_an_options_text() -> None:
    assert judge_choice("(D)", "None of these", OPTIONS) == ("correct", "match")
    assert judge_choice("A", "D", OPTIONS) == ("incorrect", "mismatch")
    assert judge_choice("hm", "D", OPTIONS) == ("unverifiable", "unparsable")
    assert judge_choice("A", "something else", OPTIONS) == ("unverifiable", "unparsable_reference")
    assert judge_choice("J", "J", "{}") == ("correct", "match")
    assert options_of("[]") == options_of("") == ()


def test_the_choice_grader_judges_traces_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2sr.grading.workers.GradingPool._start", lambda _: pytest.fail("a process was started"))
    prompts = {"p": Prompt("p", "test", "?", "C", None, "file", OPTIONS)}
    texts = ["I say (A).\nNo: (C)", "The answer is a triangle.", r"\boxed{B}", "hm"]
    traces = [Trace(str(n), "p", "m", 0, text, "stop", 1, 1, 0, "", "", "", None) for n, text in enumerate(texts)]
    with Grader(VerifyConfig(grader="choice")) as grader:
        found = grader.grade(traces, prompts)
    assert [row.reason for row in found] == ["match", "match", "mismatch", "no_answer"]
    assert (found[0].first_verdict, found[0].verdict) == ("incorrect", "correct")

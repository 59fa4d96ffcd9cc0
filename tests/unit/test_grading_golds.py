"""The gold answers of real data sets: each verifies against itself however it is written, and none against another one."""

import itertools
from collections.abc import Callable

import pytest

from benchmarks.answer_pairs import DATA, WAYS, golds, math_like_pairs
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.grading.graders import Question
from w2sr.records import Prompt, Trace

SETS = ("gsm8k", "math500", "amc23", "aime24")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not there: {DATA}")
MARKS: tuple[Callable[[str], str], ...] = (
    lambda answer: rf"Therefore \boxed{{{answer}}}.",
    lambda answer: f"I add them up.\n#### {answer}",
    lambda answer: f"<answer>{answer}</answer>",
    lambda answer: f"So **the final answer is: {answer}**",
    lambda answer: f"The answer is {answer}. I hope it is correct.",
)
# Different texts that are the same answer: the same value, or the same but for a unit, a base or an order that does not matter.
SAME_ANSWER = {
    ("(-2,1)", "-2,1"),
    ("-2,1", "1,-2"),
    ("40", "40_9"),
    ("52", "52_8"),
    ("204", "204_5"),
    ("36", "\\$36"),
    ("36.0", "\\$36"),
    ("15", "15\\mbox{ cm}^2"),
    ("5", "x=5"),
    ("5.0", "x=5"),
    ("180^\\circ", "\\pi"),
    ("\\frac14", "\\frac{1}{4}"),
    ("2 \\sqrt{5}", "2\\sqrt{5}"),
    ("10,\\!080", "10080"),
}


def plain(gold: str) -> str:
    return gold.replace("^\\circ", "").replace(",", "").removesuffix(".0")


@pytest.mark.parametrize("name", SETS)
def test_every_gold_verifies_against_itself_written_in_five_ways_and_marked_in_five_ways(name: str) -> None:
    answers = list(dict.fromkeys(golds(name)))
    texts = [(gold, mark(way(gold))) for gold in answers for way, mark in zip(WAYS, MARKS)]
    texts += [(gold, mark(gold)) for gold in answers for mark in MARKS]
    prompts = {gold: Prompt(gold, "test", "?", gold, None, "file", "{}") for gold in answers}
    traces = [Trace(str(n), gold, "m", 0, text, "stop", 1, 1, 0, "", "", "", None) for n, (gold, text) in enumerate(texts)]
    with Grader(VerifyConfig()) as grader:
        found = grader.grade(traces, prompts)
    assert [(trace.text, row.reason) for trace, row in zip(traces, found) if row.verdict != "correct"] == []
    assert len(found) == 10 * len(answers)


def test_no_gold_verifies_against_another_ones() -> None:
    answers = sorted({gold for name in SETS for gold in golds(name)})
    with Grader(VerifyConfig()) as grader:
        judged = grader.judge(Question("math", one, other) for one, other in itertools.permutations(answers, 2))
    matched = {(question.answer, question.reference) for question, judgement in judged.items() if judgement.verdict == "correct"}
    assert len(judged) == len(answers) * (len(answers) - 1)
    unexplained = {pair for pair in matched if plain(pair[0]) != plain(pair[1])}
    assert {pair for pair in unexplained if pair not in SAME_ANSWER and pair[::-1] not in SAME_ANSWER} == set()


def test_most_real_answers_need_no_process() -> None:
    from w2sr.grading.graders import judge_cheaply

    pairs = math_like_pairs(2000, 3, golds("math500"))
    undecided = [pair for pair in pairs if judge_cheaply(Question("math", *pair)) is None]
    assert len(undecided) < 0.02 * len(pairs)

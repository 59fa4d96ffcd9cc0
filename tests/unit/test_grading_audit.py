"""The audit: what is sampled, what the second check says, and how far the estimate reaches."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.grading.audit import choose, estimate, form_name, numerically_equal, second_opinions, shares
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.records import Prompt, Verdict, Verification


def row(number: int, verdict: Verdict, answer: str | None, reason: str = "match") -> Verification:
    return Verification(f"t{number}", "p", verdict, reason, answer, answer)


def rows() -> list[Verification]:
    """800 right numbers, 200 right words, 50 wrong numbers, 10 without an answer, 5 failed."""
    found = [row(n, "correct", "5") for n in range(800)] + [row(n, "correct", r"\text{east}") for n in range(800, 1000)]
    found += [row(n, "incorrect", "6", "mismatch") for n in range(1000, 1050)]
    found += [row(n, "unverifiable", None, "no_answer") for n in range(1050, 1060)]
    return found + [row(n, "unverifiable", None, "error") for n in range(1060, 1065)]


def test_the_sample_has_every_verdict_and_the_forms_in_proportion() -> None:
    chosen, populations = choose(rows(), 300)
    assert populations == {"correct": 1000, "incorrect": 50, "unverifiable": 10}
    assert {verdict: len(sample) for verdict, sample in chosen.items()} == {"correct": 100, "incorrect": 50, "unverifiable": 10}
    assert Counter(form_name(item.last_answer) for item in chosen["correct"]) == {"number": 80, "words": 20}


def test_the_sample_does_not_depend_on_the_order_of_rows() -> None:
    forwards, backwards = choose(rows(), 60)[0], choose(reversed(rows()), 60)[0]
    assert {verdict: {item.trace_id for item in sample} for verdict, sample in forwards.items()} == {
        verdict: {item.trace_id for item in sample} for verdict, sample in backwards.items()
    }


def test_nothing_is_sampled_when_nothing_is_asked_for() -> None:
    assert sum(len(sample) for sample in choose(rows(), 0)[0].values()) == 0


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 300))
def test_shares_sum_to_the_total_and_exceed_no_stratum(sizes: dict[str, int], total: int) -> None:
    found = shares(sizes, total)
    assert sum(found.values()) == min(total, sum(sizes.values()))
    assert all(0 <= found[name] <= sizes[name] for name in sizes)


@pytest.mark.parametrize(("wrong", "low", "high"), [(0, 0.0, 0.036217), (5, 0.016432, 0.112835), (100, 0.963783, 1.0)])
def test_intervals_are_those_of_clopper_and_pearson(wrong: int, low: float, high: float) -> None:
    """Closed forms for 0 and 100 of 100: 1 - 0.025^(1/100); 5 of 100 from published tables."""
    found = estimate(1000, 100, 3, wrong)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-6), pytest.approx(high, abs=2e-6))
    assert (found.rate, found.no_opinion) == (wrong / 100, 3)


def test_without_a_check_the_rate_may_be_anything() -> None:
    assert (estimate(10, 0, 4, 0).rate, estimate(10, 0, 4, 0).high) == (None, 1.0)


def test_numbers_at_random_points_are_a_check_of_their_own() -> None:
    assert numerically_equal(r"\sin^2 x + \cos^2 x", "1") is True
    assert numerically_equal(r"\cot x", r"\tan x") is False
    assert numerically_equal("(1,2)", "1") is None


def test_wrong_verdicts_are_found_by_the_second_check() -> None:
    """Planted: half of the verdicts say the opposite of the truth, and one missed answer stands in the text."""
    prompt = Prompt("p", "train", "?", r"\frac{1}{2}", None, "file", "{}")
    cases = [
        (row(0, "correct", "0.5"), "The answer is 0.5"),
        (row(1, "correct", "0.6"), "The answer is 0.6"),
        (row(2, "incorrect", "0.7", "mismatch"), "The answer is 0.7"),
        (row(3, "incorrect", "0.5", "mismatch"), "The answer is 0.5"),
        (row(4, "unverifiable", None, "no_answer"), r"Hence $x = \frac{1}{2}$"),
        (row(5, "unverifiable", None, "no_answer"), r"Hence $x = \frac{1}{3}$"),
        (row(6, "incorrect", r"\frac{\sin 2x}{4\sin x\cos x}", "mismatch"), r"The answer is \frac{\sin 2x}{4\sin x\cos x}"),
    ]
    with Grader(VerifyConfig()) as grader:
        found = second_opinions([(item, text, prompt) for item, text in cases], grader)
    assert [found[f"t{number}"] for number in range(7)] == [True, False, False, True, True, False, True]


def test_a_task_with_many_right_answers_is_not_refuted_by_one_of_them() -> None:
    prompt = Prompt("p", "train", "?", "5", None, "reasoning_gym:countdown", "{}")
    cases = [(row(0, "correct", "6"), "#### 6", prompt), (row(1, "incorrect", "5", "mismatch"), "#### 5", prompt)]
    with Grader(VerifyConfig(grader="reasoning_gym")) as grader:
        assert second_opinions(cases, grader) == {"t0": None, "t1": True}


def test_a_choice_is_checked_by_its_first_lone_letter() -> None:
    prompt = Prompt("p", "train", "?", "B", None, "file", "{}")
    cases = [(row(0, "correct", "(B)"), r"\boxed{(B)}", prompt), (row(1, "correct", "C"), r"\boxed{C}", prompt)]
    with Grader(VerifyConfig(grader="choice")) as grader:
        assert second_opinions(cases, grader) == {"t0": True, "t1": False}

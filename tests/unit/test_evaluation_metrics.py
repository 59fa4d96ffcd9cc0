"""Per-problem figures: pass@k against enumeration, and what a failed request counts as."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.evaluation.metrics import Outcomes, avg_at_k, outcomes_of, pass_at_k, pooled, values_of
from w2sr.records import FinishReason, Trace, Verdict, Verification


def trace(prompt_id: str, sample: int, tokens: int = 10, finish: FinishReason = "stop") -> Trace:
    error = "engine died" if finish == "error" else None
    return Trace(f"{prompt_id}-{sample}", prompt_id, "m", sample, "text", finish, 5, tokens, 1, "t", "d", "fake", error)


def verdict(prompt_id: str, sample: int, value: Verdict, answer: str | None = "7") -> Verification:
    return Verification(f"{prompt_id}-{sample}", prompt_id, value, "match", answer, answer)


matrices = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1)).map(
    lambda shape: np.random.default_rng(shape[2]).random((shape[0], shape[1])) < 0.4
)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    for num_samples in range(1, 8):
        for num_correct in range(num_samples + 1):
            row = np.arange(num_samples) < num_correct
            for k in range(1, num_samples + 1):
                subsets = [any(row[list(chosen)]) for chosen in combinations(range(num_samples), k)]
                assert pass_at_k(row[None, :], k)[0] == pytest.approx(np.mean(subsets), abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples() -> None:
    row = np.arange(10_000) < 3
    assert pass_at_k(row[None, :], 100)[0] == pytest.approx(1 - (0.99 * 9899 / 9999 * 9898 / 9998), rel=1e-9)


def test_pass_at_more_than_the_samples_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="pass@3 needs at least 3 samples"):
        pass_at_k(np.ones((2, 2), dtype=bool), 3)


@given(matrices)
def test_pass_at_1_is_avg_and_pass_at_k_never_falls_with_k(correct: np.ndarray) -> None:
    chances = [pass_at_k(correct, k) for k in range(1, correct.shape[1] + 1)]
    assert np.allclose(chances[0], avg_at_k(correct))
    assert all((after >= before - 1e-12).all() for before, after in pairwise(chances))
    assert np.array_equal(chances[-1], correct.any(axis=1))


@given(matrices, st.randoms())
def test_figures_do_not_depend_on_the_order_of_samples(correct: np.ndarray, random: object) -> None:
    order = list(range(correct.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    for k in range(1, correct.shape[1] + 1):
        assert np.array_equal(pass_at_k(correct, k), pass_at_k(correct[:, order], k))


def test_outcomes_are_arranged_by_problem_and_sample_index() -> None:
    traces = [trace("b", 1, tokens=30, finish="length"), trace("a", 0), trace("b", 0), trace("a", 1)]
    verdicts = [
        verdict("a", 0, "correct"),
        verdict("a", 1, "unverifiable"),
        verdict("b", 0, "incorrect"),
        verdict("b", 1, "incorrect", answer=None),
    ]
    found = outcomes_of(["a", "b"], traces, {row.trace_id: row for row in verdicts}, 2)
    assert found.correct.tolist() == [[True, False], [False, False]]
    assert found.unverifiable.tolist() == [[False, True], [False, False]]
    assert found.no_answer.tolist() == [[False, False], [False, True]]
    assert found.truncated.tolist() == [[False, False], [False, True]]
    values = values_of(found, [1, 2])
    assert values["avg"].tolist() == [0.5, 0.0]
    assert values["pass@2"].tolist() == [1.0, 0.0]
    assert values["tokens"].tolist() == [10.0, 20.0]


def test_a_failed_or_missing_request_counts_as_not_solved() -> None:
    traces = [trace("a", 0), trace("a", 1, tokens=0, finish="error")]
    found = outcomes_of(["a", "b"], traces, {"a-0": verdict("a", 0, "correct")}, 2)
    assert found.failed.tolist() == [[False, True], [True, True]]
    values = values_of(found, [1])
    assert values["avg"].tolist() == [0.5, 0.0]
    assert values["failed"].tolist() == [0.5, 1.0]
    assert values["tokens"].tolist() == [10.0, 0.0]
    assert (found.num_problems, found.num_samples) == (2, 2)


def test_students_of_an_arm_are_averaged_problem_by_problem() -> None:
    def student(correct: list[list[bool]]) -> dict[str, np.ndarray]:
        matrix = np.array(correct)
        none = np.zeros_like(matrix)
        return values_of(Outcomes(("a", "b"), matrix, none, none, none, none, np.ones(matrix.shape)), [2])

    arm = pooled([student([[True, False], [False, False]]), student([[True, True], [True, False]])])
    assert arm["avg"].tolist() == [0.75, 0.25]
    assert arm["pass@2"].tolist() == [1.0, 0.5]  # not pass@2 of four pooled samples

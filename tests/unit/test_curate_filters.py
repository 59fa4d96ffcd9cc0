"""What is filtered, in which order, and what is not: every filter has a case on each side."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.curation_fake import make, prompts_of, row
from w2sr.curation.duplicates import bands_of, near_duplicates, signatures_of, similarity
from w2sr.curation.filters import ORDER, states_its_answer

WORDS = [f"{one}{two}" for one in "abcdefghijklmnopqrst" for two in "bcdfghjklmnpqrstvwxz"]  # without numbers: those all count as one
SOLUTION = "one two three, four five six seven eight nine ten eleven twelve."
LOOP = "and then it is the same again, " * 8


def judged(texts: list[str], prompt: int = 0) -> list[dict[str, Any]]:
    return [row(prompt, number, "correct", text) for number, text in enumerate(texts)]


def reasons(texts: list[str], **filters: Any) -> list[str]:
    """Return what became of each text: a reason, or "kept"."""
    rows = judged([*texts, "a sound text to fill the arm"])
    found = make(rows, arms=["all"], filters=filters)
    rejected = found.rejected("all")
    return [rejected.get(one["row_id"], "kept") for one in rows[:-1]]


def test_verdicts_and_ends_come_before_all_filters() -> None:
    rows = [
        row(0, 50, "correct", LOOP, finish="length", reason="match"),
        row(0, 51, "unverifiable", LOOP, finish="length", reason="truncated"),
        row(0, 52, "unverifiable", "", finish="error", reason="error"),
        row(0, 53, "unverifiable", LOOP, reason="timeout"),
        row(0, 54, "correct", LOOP),
        row(0, 55, "correct", "So <eos> 1 #### 1"),
        row(0, 56, "correct"),
        row(0, 57, "incorrect"),
    ]
    found = make(rows, arms=["all", "correct", "incorrect"])
    for name in found.arms:
        funnel = found.funnel(name)
        assert {key: funnel[key] for key in ("truncated", "error", "timeout", "loop", "special_token")} == {
            "truncated": 2,
            "error": 1,
            "timeout": 1,
            "loop": 1,
            "special_token": 1,
        }


def test_the_first_reason_in_the_fixed_order_counts() -> None:
    stray = "<eos> это другой язык "
    both = stray + LOOP
    assert reasons([both, stray, "<eos>", " "]) == ["loop", "stray_script", "special_token", "empty"]
    assert reasons([both], loops=False) == ["stray_script"]
    assert reasons([both], loops=False, stray_script_letters=None) == ["special_token"]
    assert reasons([both], max_tokens=20) == ["too_long"]
    listed = ["empty", "too_short", "too_long", "loop", "stray_script", "special_token", "answer_in_prompt", "contaminated"]
    assert [name for name in ORDER if name in listed] == listed


def test_lengths_are_counted_with_the_end_token() -> None:
    texts = ["one two", "one two three", "one two three four five"]
    assert reasons(texts, min_tokens=4, max_tokens=5) == ["too_short", "kept", "too_long"]
    assert reasons(texts) == ["kept"] * 3


def test_a_low_share_of_distinct_words_is_a_loop_where_asked_for() -> None:
    assert reasons(["so so so so so so a b"], min_unique_word_ratio=0.5) == ["loop"]
    assert reasons(["so so so so so so a b"]) == ["kept"]


def test_a_script_is_stray_unless_the_question_uses_it() -> None:
    rows = [row(number, 0, "correct", "Ответ равен пяти #### 5") for number in (0, 1)]
    prompts = prompts_of(5, questions=["Сколько будет 2 + 3?", "What is 2 + 3?"])
    assert list(make(rows, prompts=prompts, arms=["all"]).rejected("all").values()) == ["stray_script"]
    few = make(rows, prompts=prompts, arms=["all"], filters={"stray_script_letters": 15})
    assert not few.rejected("all")


@pytest.mark.parametrize(
    ("question", "answer", "reference", "leaks"),
    [
        ("What is 6 * 12? The answer is 72.", "72", None, True),
        (r"What is 6 * 12? \boxed{72.0}", "72", None, True),
        ("What is 6 * 12? #### 72", "72", None, True),
        ("What is 6 * 12? The answer is a number.", "72", None, False),
        ("Ada has 72 apples and eats none. How many are left?", "72", None, False),
        ("Which is right? (A) 3 (B) 72", "B", None, False),
        ("What is 6 * 12?", None, None, False),
        (f"Q: a b c? A: {SOLUTION.upper()}", "12", SOLUTION, True),
        ("one two three", "3", "one two three", False),
    ],
)
def test_a_question_that_states_its_answer_is_told_from_one_that_mentions_it(
    question: str, answer: str | None, reference: str | None, leaks: bool
) -> None:
    assert states_its_answer(question, answer, reference) is leaks


def test_a_leaking_prompt_loses_all_its_rows_gold_included() -> None:
    prompts = prompts_of(3, questions=["What is 6 * 12? #### 72"], answers=["72"])
    found = make([row(0, 0, "correct"), row(1, 0, "correct")], prompts=prompts, arms=["all", "gold"])
    assert found.funnel("all") == {"candidates": 2, "kept": 1, "answer_in_prompt": 1}
    assert found.funnel("gold") == {"candidates": 3, "kept": 2, "answer_in_prompt": 1}
    assert not make([row(0, 0, "correct")], prompts=prompts, arms=["all"], filters={"answer_in_prompt": False}).rejected("all")


def test_duplicates_are_dropped_only_when_asked_for_and_only_within_a_prompt() -> None:
    rows = [row(0, 1, "correct", "same"), row(0, 2, "correct", "same", teacher="other"), row(1, 3, "correct", "same")]
    assert len(make(rows, arms=["all"]).kept("all")) == 3
    dropped = make(rows, arms=["all"], filters={"duplicates": True})
    assert dropped.funnel("all") == {"candidates": 3, "kept": 2, "duplicate": 1}
    assert rows[2]["row_id"] in dropped.kept("all")


def test_a_complete_trace_never_yields_to_its_truncated_copy() -> None:
    rows = [row(0, sample, "incorrect", "same text", finish="length" if sample else "stop") for sample in range(6)]
    for seed in range(4):
        found = make(rows, seed, arms=["all"], filters={"duplicates": True})
        assert found.kept("all") == [rows[0]["row_id"]]


def text_like(other: list[str], share: float, rng: random.Random) -> str:
    """Return a text in which about `share` of the words are those of `other`."""
    return " ".join(word if rng.random() < share else rng.choice(WORDS) for word in other)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_the_estimated_similarity_is_the_jaccard_similarity(seed: int, share: float) -> None:
    rng = random.Random(seed)
    one = [rng.choice(WORDS) for _ in range(150)]
    other = text_like(one, share, rng).split()
    shingles = [{tuple(words[start : start + 3]) for start in range(len(words) - 2)} for words in (one, other)]
    true = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    found = signatures_of([" ".join(one), " ".join(other)])
    assert abs(similarity(found[0], found[1:])[0] - true) < 0.2  # more than four standard errors


def test_near_duplicates_of_a_prompt_are_those_of_like_words_and_like_outcome() -> None:
    rng = random.Random(1)
    one = [rng.choice(WORDS) for _ in range(120)]
    close = " ".join([*one[:60], "other", *one[61:]])
    far = text_like(one, 0.8, rng)
    rows = [*judged([" ".join(one), close, far]), row(1, 9, "correct", close), row(0, 8, "incorrect", close)]
    found = make(rows, arms=["all"], filters={"near_duplicates": {"threshold": 0.85}})
    assert found.funnel("all") == {"candidates": 5, "kept": 4, "near_duplicate": 1}
    assert set(found.rejected("all")) <= {rows[0]["row_id"], rows[1]["row_id"]}
    pooled = make(rows, arms=["all"], filters={"near_duplicates": {"scope": "pool"}})
    assert pooled.funnel("all") == {"candidates": 5, "kept": 3, "near_duplicate": 2}


def test_bands_find_what_comparing_every_pair_finds() -> None:
    rng = random.Random(7)
    texts = []
    for _ in range(60):
        one = [rng.choice(WORDS) for _ in range(100)]
        texts += [" ".join(one), text_like(one, 0.985, rng), text_like(one, 0.3, rng)]
    signatures = signatures_of(texts)
    order = np.arange(len(texts))
    every = near_duplicates(signatures, order, [np.zeros(len(texts), np.int64)], 0.85)
    by_band = near_duplicates(signatures, order, bands_of(signatures, order), 0.85)
    assert 25 < every.sum() <= 60
    assert (every & by_band).sum() >= 0.95 * every.sum()
    assert not (by_band & ~every).any()


def test_diverse_rows_are_unlike_each_other() -> None:
    rng = random.Random(3)
    families = [[rng.choice(WORDS) for _ in range(80)] for _ in range(5)]
    texts = [text_like(words, 0.97, rng) for words in families for _ in range(6)]
    found = make(judged(texts), arms=[{"name": "wide", "kind": "all", "order": "diverse", "sizes": [5]}])
    family = {found.ids[number]: number // 6 for number in range(30)}
    assert len({family[row_id] for row_id in found.kept("wide-5")}) == 5

"""Contamination: copies are found however they are spelled, boilerplate is not evidence, the ledger and the clean subset agree."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.curation_fake import make, prompts_of, row
from w2sr.curation.config import ContaminationConfig
from w2sr.curation.contamination import EvalItem
from w2sr.curation.evalwords import plain_words, without_numbers
from w2sr.curation.ledger import Ledger

TRAIN = (
    "A train travels 1,200 miles in five hours. At the same rate, how many additional hours would it take to travel an additional 480 "
    "miles?"
)
OTHERS = [
    "Find the sum of all positive divisors of 360 that are not divisible by 4 and leave remainder 1 modulo 7.",
    "Compute 3 + 4 * 5 - 6.",
    "How old is Bob?",
]
ITEMS = [EvalItem("test", "t0", TRAIN), *(EvalItem("other", f"o{n}", question) for n, question in enumerate(OTHERS))]
DATA = Path(__file__).parents[3] / "shared" / "data"


def hits(text: str, items: list[EvalItem] = ITEMS, **settings: object) -> dict[str, set[str]]:
    """Return eval id -> the rules by which `text` counts as contaminated."""
    ledger = Ledger(ContaminationConfig.model_validate(settings), items)
    ledger.look_up("trace", ["r"], ["p"], [text])
    found: dict[str, set[str]] = {}
    for hit in ledger.hits:
        if hit.counts:
            found.setdefault(hit.eval_id, set()).add(hit.rule)
    return found


@pytest.mark.parametrize(
    "text",
    [
        TRAIN,
        TRAIN.upper().replace(",", ";").replace("1;200", "1200.0"),
        f"Let us see. {TRAIN.replace(' ', chr(10))} So 2 hours.",
        TRAIN.replace("five", "5").replace("480", "480.00"),
    ],
)
def test_a_copy_is_found_whatever_its_case_spacing_and_spelling_of_numbers(text: str) -> None:
    assert hits(text) == {"t0": {"ngram", "number"}}


def test_the_same_exercise_with_other_numbers_is_found_by_the_number_rule_only() -> None:
    other = TRAIN.replace("1,200", "270").replace("five", "3").replace("480", "180")
    assert hits(other, min_coverage=0.9) == {"t0": {"number"}}
    assert hits(other, min_coverage=0.9, rules=["ngram"]) == {}
    assert hits(other, min_coverage=0.9, rules=["number"]) == {"t0": {"number"}}


def test_a_short_question_must_stand_there_as_a_whole() -> None:
    assert hits("First, compute 3 + 4 * 5 - 6 . It is 17.") == {"o1": {"ngram"}}
    assert hits("First, compute 3 + 4 * 5 - 7 .") == {}
    assert hits("How old is Bob? He is 5.") == {}, "too few words to say anything"


def test_a_part_of_a_question_is_listed_but_counts_only_from_the_configured_coverage() -> None:
    half = " ".join(TRAIN.split()[:14])
    ledger = Ledger(ContaminationConfig(rules=["ngram"], min_coverage=0.6), ITEMS)
    assert ledger.look_up("trace", ["r"], ["p"], [half]) == set()
    [hit] = ledger.hits
    assert (hit.counts, hit.eval_id, hit.coverage) == (False, "t0", 14 / 25)
    assert hits(half, rules=["ngram"], min_coverage=0.3) == {"t0": {"ngram"}}


def test_words_that_stand_in_many_questions_are_no_evidence() -> None:
    wrapped = [
        EvalItem("sums", str(n), f"State the final answer to the following arithmetic problem without any explanation: {n} + {n + 7} - 3 =")
        for n in range(10, 60)
    ]
    assert hits(wrapped[5].question, wrapped, min_question_words=4) == {"15": {"ngram"}}
    other = "State the final answer to the following arithmetic problem without any explanation: 99 + 98 - 97 ="
    assert hits(other, wrapped, min_question_words=4) == {}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 40))
def test_a_question_is_found_wherever_it_stands_and_shuffled_words_are_not(seed: int, before: int, after: int) -> None:
    rng = random.Random(seed)
    vocabulary = [f"{one}{two}" for one in "abcdefgh" for two in "klmnop"]
    questions = [[rng.choice(vocabulary) for _ in range(rng.randint(6, 40))] for _ in range(8)]
    items = [EvalItem("set", str(number), " ".join(words)) for number, words in enumerate(questions)]
    chosen = rng.randrange(8)
    text = [rng.choice(vocabulary) for _ in range(before)] + questions[chosen] + [rng.choice(vocabulary) for _ in range(after)]
    assert "ngram" in hits(" ".join(text), items)[str(chosen)]
    mixed = list(questions[chosen])
    rng.shuffle(mixed)
    if len(mixed) >= 13:
        assert str(chosen) not in hits(" ".join(mixed), items)


def test_numbers_have_one_spelling() -> None:
    assert plain_words("1,200.0 01200 1200. five .50") == ["1200", "1200", "1200", "5", "0.5"]
    assert plain_words("x^2−3×y don’t") == ["x", "^", "2", "-", "3", "*", "y", "don", "t"]
    assert without_numbers(plain_words("Buy 2 or three pens")) == ["buy", "<number>", "or", "<number>", "pens"]


def test_contaminated_rows_are_reported_or_dropped_and_the_clean_subset_is_the_same() -> None:
    prompts = prompts_of(4, questions=[TRAIN, "What is 2 + 2?"])
    rows = [row(0, 0, "correct"), row(1, 1, "correct"), row(1, 2, "incorrect", f"As in: {TRAIN}"), row(2, 3, "incorrect")]
    reported = make(rows, prompts=prompts, items=ITEMS, arms=["all", "gold"])
    assert reported.funnel("all") == {"candidates": 4, "kept": 4}
    dropped = make(rows, prompts=prompts, items=ITEMS, arms=["all", "gold"], contamination={"policy": "drop"})
    assert dropped.funnel("all") == {"candidates": 4, "kept": 2, "contaminated": 2}
    assert dropped.funnel("gold") == {"candidates": 4, "kept": 3, "contaminated": 1}
    for ledger in (reported.ledger, dropped.ledger):
        summary = ledger.summary()
        assert (summary["training_prompts"], summary["training_traces"]) == (1, 1)
        assert summary["sets"]["test"] == {"questions": 1, "by_rule": {"ngram": 1, "number": 1}, "contaminated": ["t0"]}
        assert summary["sets"]["other"]["contaminated"] == []
    kinds = {(hit.kind, hit.row_id, hit.prompt_id) for hit in dropped.ledger.hits}
    assert kinds == {("prompt", "p0", "p0"), ("trace", rows[2]["row_id"], "p1")}
    assert dropped.ledger.hits[0].words.startswith("a train travels 1200 miles")


def test_without_rules_or_questions_nothing_is_found() -> None:
    assert hits(TRAIN, rules=[]) == {}
    assert hits(TRAIN, []) == {}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_real_training_questions_are_clean_but_for_a_few_and_planted_ones_are_all_found() -> None:
    def column(name: str, field: str) -> list[str]:
        return [json.loads(line)[field] for line in (DATA / name).read_text().splitlines()]

    train, test = column("gsm8k/train.jsonl", "question"), column("gsm8k/test.jsonl", "question")
    items = [EvalItem("gsm8k", str(n), question) for n, question in enumerate(test)]
    items += [EvalItem("math", str(n), question) for n, question in enumerate(column("eval/math500.jsonl", "problem"))]
    planted = test[:200]
    ledger = Ledger(ContaminationConfig(), items)
    found = ledger.look_up("prompt", [str(n) for n in range(7673)], [""] * 7673, [*train, *planted])
    assert {number for number in found if number >= len(train)} == set(range(len(train), len(train) + 200))
    assert len([number for number in found if number < len(train)]) <= 5

"""Loops and stray scripts, against a slow definition and on real text where it is there."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.textual.loops import is_loop, poor_share, repeated_tail, unique_word_ratio
from w2sr.textual.scripts import scripts_of, stray_scripts

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "text",
    [
        "So 3 + 4 is 7. " + "The total is 12 pounds.\n" * 6,
        "So 3 + 4 is 7. " + "The total is 12 pounds.\n" * 6 + "The total i",
        "He has " + "6" * 90,
        "x = " + "".join(f"{2**n} x 2 = {2 ** (n + 1)} dollars\n" for n in range(12)),
        "总共是十二磅，因此" * 12,
        "start " + "red blue " * 60 + "and so the answer is 7 at last, which nobody doubted. #### 7",
    ],
)
def test_a_text_that_repeats_itself_is_a_loop(text: str) -> None:
    assert is_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "72",
        "3 + 4 = 7\n7 + 5 = 12\n12 + 9 = 21\n#### 21",
        "The answer is 72. The answer is 72.",
        "\n".join(f"Day {day}: {day} x 3 = {3 * day} apples" for day in range(1, 31)) + "\nSo on day 30 she has 90 apples. #### 90",
        "one third is " + "3" * 40,
        " ".join(str(number) for number in range(400)) + " + 1" * 90 + " and that is 90",
    ],
)
def test_a_text_that_gets_somewhere_is_no_loop(text: str) -> None:
    assert not is_loop(text)


@given(st.text("ab ", max_size=12), st.text("abc ", min_size=1, max_size=50), st.integers(3, 8), st.integers(0, 50))
def test_a_repeated_block_is_found_wherever_the_text_breaks_off(start: str, block: str, repeats: int, cut: int) -> None:
    text = start + block * repeats + block[: cut % len(block)]
    tail = repeated_tail(text)
    if len(text.rstrip()) >= 32 + len(start) + len(block):
        assert tail is not None
        assert tail.length >= len(block * repeats) - len(block) or tail.repeats >= 3


@settings(max_examples=300)
@given(
    st.one_of(
        st.text("ab", max_size=120), st.builds(lambda a, b, n: a + b * n, st.text("ab"), st.text("ab", max_size=40), st.integers(0, 6))
    )
)
def test_a_tail_is_periodic_and_cannot_be_longer(text: str) -> None:
    tail = repeated_tail(text)
    if tail is None:
        assert text.find(text[-32:]) == len(text) - len(text[-32:])
        return
    body = text[len(text) - tail.length :]
    assert body[tail.period :] == body[: -tail.period]
    longer = text[max(0, len(text) - tail.length - 1) :]
    assert longer == body or longer[tail.period :] != longer[: -tail.period]


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=60), st.integers(1, 20), st.integers(0, 5))
def test_the_poor_share_is_that_of_the_words_in_poor_windows(words: list[str], window: int, least: int) -> None:
    starts = [start for start in range(len(words) - window + 1) if len(set(words[start : start + window])) < least]
    covered = {place for start in starts for place in range(start, start + window)}
    assert poor_share(" ".join(words), window, least) == (len(covered) / len(words) if words else 0)


def test_the_unique_word_ratio_of_no_words_is_one() -> None:
    assert unique_word_ratio("") == 1.0
    assert unique_word_ratio("a a b b") == 0.5


def test_the_longest_texts_take_no_time() -> None:
    assert is_loop("word " * 400_000)
    assert not is_loop(" ".join(str(number) for number in range(300_000)) + " end")


def test_another_script_than_the_questions_is_stray() -> None:
    assert stray_scripts("So 由于 the total is 7", "What is 3 + 4?") == {"Han": 2}
    assert stray_scripts("Итак, 7", "What is 3 + 4?") == {"Cyrillic": 4}
    assert stray_scripts("因此 그래서 7", "三加四等于多少？") == {"Hangul": 3}


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("π ≈ 3.14, θ ≤ 90°, x² ∈ ℝ, 𝑥 = ½ µm, café 🙂 ℵ₀ €", "How many?"),
        ("因此答案是 7", "三加四等于多少？"),
        ("これは漢字です", "漢字ですか?"),
        ("답은 7 漢", "얼마?"),
        ("plain", ""),
    ],
)
def test_mathematics_and_the_questions_own_scripts_are_not_stray(text: str, question: str) -> None:
    assert stray_scripts(text, question) == {}


def test_scripts_are_counted_by_letter() -> None:
    assert scripts_of("abc Жж 7") == {"Latin": 3, "Cyrillic": 2}
    assert scripts_of("\U00010330") == {"other": 1}  # Gothic


@pytest.mark.skipif(not (DATA / "gsm8k/train.jsonl").exists(), reason="GSM8K is not on this machine")
def test_no_gold_solution_is_a_loop_or_mixed() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k/train.jsonl").read_text().splitlines()]
    assert not any(is_loop(row["answer"]) or stray_scripts(row["answer"], row["question"]) for row in rows)


@pytest.mark.skipif(not (DATA / "traces/gsm8k_gemma_2b_weak.json").exists(), reason="the weak traces are not on this machine")
def test_real_loops_are_found_and_complete_traces_are_not_called_loops() -> None:
    texts = [row["output"] for row in json.loads((DATA / "traces/gsm8k_gemma_2b_weak.json").read_text())]
    unfinished = [text for text in texts if "####" not in text]
    assert sum(map(is_loop, unfinished)) > 0.7 * len(unfinished)
    # Of the finished ones four are loops indeed: an answer that goes on as 6666...
    assert sum(map(is_loop, texts)) - sum(map(is_loop, unfinished)) == 4

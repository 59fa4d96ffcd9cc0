"""Curation: every trace is in an arm or rejected from it with a reason, and arms are matched as declared."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.curation.arms import Arm, make_arms
from w2sr.curation.config import CurateConfig
from w2sr.curation.filters import Judged, unique_word_ratio
from w2sr.errors import UserError
from w2sr.records import FinishReason, Prompt, Trace, Verdict, Verification, trace_id_of

REASONS: dict[Verdict, str] = {"correct": "match", "incorrect": "mismatch", "unverifiable": "no_answer"}


def prompts_of(count: int, with_traces: bool = True) -> list[Prompt]:
    return [Prompt(f"p{n}", "train", f"{n}?", str(n), f"gold {n}" if with_traces else None, "file", "{}") for n in range(count)]


def judged(
    prompt: int, sample: int, verdict: Verdict, text: str = "", finish: FinishReason = "stop", teacher: str = "weak", reason: str = ""
) -> Judged:
    trace_id = trace_id_of(f"p{prompt}", teacher, sample)
    text = text or f"trace {trace_id}"
    trace = Trace(trace_id, f"p{prompt}", teacher, sample, text, finish, 1, 1, 0, "h", "d", "e", None)
    return Judged(trace, Verification(trace_id, f"p{prompt}", verdict, reason or REASONS[verdict], "1", "1"))


def pool_of(num_correct: int, num_incorrect: int, num_unverifiable: int = 0) -> list[Judged]:
    verdicts: list[Verdict] = ["correct"] * num_correct + ["incorrect"] * num_incorrect + ["unverifiable"] * num_unverifiable
    return [judged(number % 5, number, verdict) for number, verdict in enumerate(verdicts)]


def arms_of(pool: list[Judged], seed: int = 0, num_prompts: int = 5, **settings: object) -> dict[str, Arm]:
    config = CurateConfig.model_validate({"match": "none"} | settings)
    return {arm.name: arm for arm in make_arms(pool, prompts_of(num_prompts), config, seed, ["<eos>"])}


pools = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["correct", "incorrect", "unverifiable"]),
        st.sampled_from(["stop", "length", "error"]),
        st.integers(0, 3),
    ),
    max_size=40,
).map(
    lambda rows: (
        [
            judged(prompt, sample, verdict, f"text {text}", finish)  # type: ignore[arg-type]
            for sample, (prompt, verdict, finish, text) in enumerate(rows)
        ]
        + [judged(0, 100, "correct", "right"), judged(1, 101, "incorrect", "wrong")]
    )
)
configs = st.builds(
    CurateConfig,
    match=st.sampled_from(["none", "rows"]),
    max_rows=st.none() | st.integers(1, 10),
    max_per_prompt=st.none() | st.integers(1, 3),
    drop_duplicates=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(pools, configs, st.integers(0, 5))
def test_every_candidate_is_kept_or_rejected_once_and_arms_are_as_declared(pool: list[Judged], config: CurateConfig, seed: int) -> None:
    arms = {arm.name: arm for arm in make_arms(pool, prompts_of(5), config, seed)}
    for arm in arms.values():
        funnel = arm.funnel()
        assert funnel["candidates"] == (5 if arm.name == "gold" else len(pool))
        ids = [example.trace_id or example.example_id for example in arm.examples] + [reject.trace_id for reject in arm.rejects]
        assert len(ids) == len(set(ids)) == funnel["candidates"]
        assert 0 < len(arm.examples) <= (config.max_rows or 1000)
        most = Counter(example.prompt_id for example in arm.examples).most_common(1)[0][1]
        assert most <= (config.max_per_prompt or 1000)
    if config.match == "rows":
        assert len({len(arm.examples) for arm in arms.values()}) == 1
    correct = {example.trace_id for example in arms["correct"].examples}
    assert not correct & {example.trace_id for example in arms["incorrect"].examples}
    assert {example.verdict for example in arms["all"].examples} <= {"correct", "incorrect"}


@settings(max_examples=25, deadline=None)
@given(pools, configs, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_same_seed_gives_the_same_rows_whatever_the_order_of_the_traces(
    pool: list[Judged], config: CurateConfig, seed: int, order: random.Random
) -> None:
    before = make_arms(pool, prompts_of(5), config, seed)
    mixed = list(pool)
    order.shuffle(mixed)
    after = make_arms(mixed, prompts_of(5)[::-1], config, seed)
    assert before == after


def test_the_arms_hold_what_their_names_say() -> None:
    arms = arms_of(pool_of(6, 4, 3))
    assert {name: len(arm.examples) for name, arm in arms.items()} == {"all": 10, "correct": 6, "incorrect": 4, "gold": 5}
    assert arms["all"].funnel() == {"candidates": 13, "kept": 10, "no_answer": 3}
    assert arms["correct"].funnel() == {"candidates": 13, "kept": 6, "no_answer": 3, "wrong_answer": 4}
    assert arms["incorrect"].funnel() == {"candidates": 13, "kept": 4, "no_answer": 3, "right_answer": 6}
    gold = arms["gold"].examples[0]
    assert (gold.origin, gold.trace_id, gold.verdict, gold.text) == ("gold", None, None, f"gold {gold.question[:-1]}")
    assert {example.origin for example in arms["all"].examples} == {"weak"}


def test_unfit_traces_are_in_no_arm_and_keep_their_reason() -> None:
    unfit = [
        judged(0, 50, "correct", finish="length", reason="match"),
        judged(0, 51, "unverifiable", finish="length", reason="truncated"),
        judged(0, 52, "unverifiable", finish="error", reason="error"),
        judged(0, 53, "unverifiable", reason="timeout"),
        judged(0, 54, "correct", text="so so so so so so so so #### 1"),
        judged(0, 55, "correct", text="So <eos> 1 #### 1"),
    ]
    arms = arms_of(pool_of(3, 3) + unfit, min_unique_word_ratio=0.5)
    for name in ("all", "correct", "incorrect"):
        funnel = arms[name].funnel()
        assert {key: funnel[key] for key in ("truncated", "error", "timeout", "loop", "special_token")} == {
            "truncated": 2,
            "error": 1,
            "timeout": 1,
            "loop": 1,
            "special_token": 1,
        }


def test_duplicates_are_dropped_only_when_asked_for_and_only_within_a_prompt() -> None:
    pool = [judged(0, 1, "correct", "same"), judged(0, 2, "correct", "same", teacher="other"), judged(1, 3, "correct", "same")]
    kept = arms_of(pool, arms=["all"])["all"]
    dropped = arms_of(pool, arms=["all"], drop_duplicates=True)["all"]
    assert len(kept.examples) == 3
    assert dropped.funnel() == {"candidates": 3, "kept": 2, "duplicate": 1}
    assert {example.prompt_id for example in dropped.examples} == {"p0", "p1"}


def test_caps_and_size_matching_say_what_they_cut() -> None:
    arms = arms_of(pool_of(20, 12), arms=["all", "correct", "incorrect"], match="rows", max_per_prompt=3, max_rows=14)
    assert {len(arm.examples) for arm in arms.values()} == {12}
    assert arms["all"].funnel() == {"candidates": 32, "kept": 12, "over_prompt_cap": 17, "max_rows": 1, "size_match": 2}
    assert arms["incorrect"].funnel() == {"candidates": 32, "kept": 12, "right_answer": 20}


def test_smaller_arms_are_subsets_of_larger_ones_and_seeds_differ() -> None:
    def chosen(rows: int, seed: int = 0) -> list[str]:
        return [example.example_id for example in arms_of(pool_of(40, 40), seed, arms=["all"], max_rows=rows)["all"].examples]

    assert chosen(30)[:10] == chosen(10)
    assert set(chosen(10)) != set(chosen(10, seed=1))


def test_an_arm_named_twice_is_made_once() -> None:
    assert len(make_arms(pool_of(1, 1), prompts_of(5), CurateConfig(arms=["all", "all"]), 0)) == 1


def test_an_empty_arm_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"'incorrect', but none of the 7 traces is left for it \(4 right_answer, 3 no_answer\); drop it"):
        arms_of(pool_of(4, 0, 3))
    with pytest.raises(UserError, match="there are no traces"):
        arms_of([], arms=["all"])


def test_gold_without_reference_traces_is_refused() -> None:
    config = CurateConfig(arms=["all", "gold"])
    with pytest.raises(
        UserError, match=r"none of the 5 training prompts has a reference chain of thought; .* or drop gold from curate.arms"
    ):
        make_arms(pool_of(4, 4), prompts_of(5, with_traces=False), config, 0)
    mixed = prompts_of(3) + [prompt for prompt in prompts_of(5, with_traces=False) if prompt.prompt_id in ("p3", "p4")]
    [gold] = [arm for arm in make_arms(pool_of(4, 4), mixed, config, 0) if arm.name == "gold"]
    assert gold.funnel() == {"candidates": 5, "kept": 3, "no_reference_trace": 2}


def test_the_unique_word_ratio_of_a_loop_is_low() -> None:
    assert unique_word_ratio("") == 1.0
    assert unique_word_ratio("a b c") == 1.0
    assert unique_word_ratio("wait " * 100) == 0.01

"""Curation: every row is in an arm or rejected from it with a reason, and arms are matched as declared."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.curation_fake import Made, make, pool_of, prompts_of, row
from w2sr.curation.config import CurateConfig
from w2sr.curation.facts import answer_hash
from w2sr.errors import UserError

CAUSES = ["wrong", "no_answer", "truncated"]

pools = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["correct", "incorrect", "unverifiable"]),
        st.sampled_from(["stop", "stop", "length", "error"]),
        st.integers(0, 3),
        st.sampled_from(["one", "two"]),
    ),
    max_size=40,
).map(
    lambda rows: (
        [
            row(prompt, sample, verdict, f"text {text}", finish, teacher)
            for sample, (prompt, verdict, finish, text, teacher) in enumerate(rows)
        ]
        + [row(0, 100, "correct", "right", teacher="one"), row(0, 101, "incorrect", "wrong", teacher="two")]
    )
)
configs = st.fixed_dictionaries(
    {
        "match": st.sampled_from(["none", "rows", "prompts", "tokens"]),
        "max_rows": st.none() | st.integers(1, 10),
        "max_per_prompt": st.none() | st.integers(1, 3),
        "max_per_teacher": st.none() | st.integers(2, 6),
        "filters": st.fixed_dictionaries({"duplicates": st.booleans()}),
        "arms": st.just(["all", "correct", {"name": "bad", "kind": "incorrect", "causes": CAUSES}, "incorrect"])
        | st.just(["all", "correct", "incorrect", "gold"]),
    }
)


def made(pool: list[dict[str, Any]], config: dict[str, Any], seed: int) -> Made | None:
    """Arms, or None where caps left an arm without rows, which is refused."""
    try:
        return make(pool, seed, **config)
    except UserError as error:
        if "is left for it" not in str(error) and "leaves no row" not in str(error):
            raise
        return None


@settings(max_examples=60, deadline=None)
@given(pools, configs, st.integers(0, 5))
def test_every_candidate_is_kept_or_rejected_once_and_arms_are_as_declared(
    pool: list[dict[str, Any]], config: dict[str, Any], seed: int
) -> None:
    found = made(pool, config, seed)
    if found is None:
        return
    prompt_of = {r["row_id"]: r["prompt_id"] for r in pool} | {f"gold-p{n}": f"p{n}" for n in range(5)}
    for name, arm in found.arms.items():
        funnel, kept, rejected = found.funnel(name), found.kept(name), found.rejected(name)
        assert funnel["candidates"] == (5 if name == "gold" else len(pool)) == len(kept) + len(rejected)
        assert len(set(kept)) == len(kept) == funnel["kept"]
        assert not set(kept) & set(rejected)
        assert 0 < len(kept) <= (config["max_rows"] or 1000)
        assert max(Counter(prompt_of[row_id] for row_id in kept).values()) <= (config["max_per_prompt"] or 1000)
        assert max(Counter(found.facts.source[arm.rows].tolist()).values()) <= (config["max_per_teacher"] or 1000)
    if config["match"] == "rows":
        assert len({len(arm.rows) for arm in found.arms.values()}) == 1
    if config["match"] == "prompts":
        assert len({tuple(sorted(prompt_of[row_id] for row_id in found.kept(name))) for name in found.arms}) == 1
    if config["match"] == "tokens":
        tokens = [int(found.facts.tokens[arm.rows].sum()) for arm in found.arms.values()]
        assert max(tokens) - min(tokens) < max(int(found.facts.tokens.max()), 1)
    assert not set(found.kept("correct")) & set(found.kept("incorrect"))
    verdict = {r["row_id"]: (r["verdict"], r["finish_reason"]) for r in pool}
    assert {verdict[row_id] for row_id in found.kept("all")} <= {("correct", "stop"), ("incorrect", "stop")}
    assert {verdict[row_id] for row_id in found.kept("correct")} == {("correct", "stop")}
    assert {verdict[row_id] for row_id in found.kept("incorrect")} == {("incorrect", "stop")}


@settings(max_examples=25, deadline=None)
@given(pools, configs, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_same_seed_gives_the_same_rows_whatever_the_order_of_traces_and_teachers(
    pool: list[dict[str, Any]], config: dict[str, Any], seed: int, order: random.Random
) -> None:
    before = made(pool, config, seed)
    mixed = list(pool)
    order.shuffle(mixed)
    after = made(mixed, config, seed)
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        for name in before.arms:
            assert before.kept(name) == after.kept(name)
            assert before.rejected(name) == after.rejected(name)


@settings(max_examples=40, deadline=None)
@given(pools, st.sampled_from(["random", "hardest", "easiest", "balanced", "diverse", "reasoning"]), st.integers(0, 3), st.booleans())
def test_sizes_are_nested(pool: list[dict[str, Any]], order: str, seed: int, one_per_prompt: bool) -> None:
    pool = [*pool, *(row(number % 5, 200 + number, "correct", teacher="one") for number in range(8))]
    arm = {"name": "small", "kind": "all", "order": order, "sizes": [1, 5, 3], "per_prompt": 2 if one_per_prompt else None}
    found = make(pool, seed, arms=[arm])
    sizes = [found.kept(f"small-{size}") for size in (1, 3, 5)]
    assert [len(kept) for kept in sizes] == [1, 3, 5]
    assert sizes[2][:3] == sizes[1]
    assert sizes[1][:1] == sizes[0]
    for name in found.arms:
        assert found.funnel(name)["candidates"] == len(pool)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 10), st.integers(1, 40))
def test_shares_hold_at_every_size_up_to_a_row(num_correct: int, num_wrong: int, share: float, most: int) -> None:
    pool = pool_of(num_correct, num_wrong)
    arm = {"name": "half", "kind": "mixed", "mix": {"correct": share, "wrong": 1}, "max_rows": most}
    try:
        found = make(pool, arms=[arm])
    except UserError as error:
        if "none of the" not in str(error):
            raise
        return
    right = {r["row_id"] for r in pool if r["verdict"] == "correct"}
    wanted = share / (share + 1)
    for number in range(1, len(found.kept("half")) + 1):
        assert abs(sum(row_id in right for row_id in found.kept("half")[:number]) - number * wanted) <= 1
    assert found.funnel("half")["candidates"] == len(pool)


def test_the_arms_hold_what_their_names_say() -> None:
    found = make(pool_of(6, 4, 3), arms=["all", "correct", "incorrect", "gold"])
    assert {name: len(arm.rows) for name, arm in found.arms.items()} == {"all": 10, "correct": 6, "incorrect": 4, "gold": 5}
    assert found.funnel("all") == {"candidates": 13, "kept": 10, "no_answer": 3}
    assert found.funnel("correct") == {"candidates": 13, "kept": 6, "no_answer": 3, "wrong_answer": 4}
    assert found.funnel("incorrect") == {"candidates": 13, "kept": 4, "no_answer": 3, "right_answer": 6}
    assert sorted(found.kept("gold")) == [f"gold-p{n}" for n in range(5)]


def test_incorrect_traces_are_chosen_by_cause() -> None:
    cut = [row(0, 50, "correct", finish="length"), row(1, 51, "unverifiable", finish="length", reason="truncated")]
    pool = [
        *pool_of(2, 3, 4),
        *cut,
        row(2, 52, "unverifiable", reason="timeout"),
        row(2, 53, "unverifiable", finish="error", reason="error"),
    ]
    arms = [
        {"name": "-".join(causes), "kind": "incorrect", "causes": causes} for causes in (["wrong"], ["no_answer"], ["truncated"], CAUSES)
    ]
    found = make(pool, arms=arms)
    assert [len(arm.rows) for arm in found.arms.values()] == [3, 4, 2, 9]
    assert set(found.kept("wrong-no_answer-truncated")) == {row_id for name in CAUSES for row_id in found.kept(name)}
    assert found.funnel("truncated") == {
        "candidates": 13,
        "kept": 2,
        "error": 1,
        "no_answer": 4,
        "right_answer": 2,
        "timeout": 1,
        "wrong_answer": 3,
    }


def test_a_majority_needs_two_votes_and_no_tie_and_no_reference() -> None:
    def votes(prompt: int, *answers: str) -> list[dict[str, Any]]:
        return [row(prompt, number, "unverifiable", reason="no_reference", answer=answer) for number, answer in enumerate(answers)]

    pool = [*votes(0, "5", "5.0", "7"), *votes(1, "5", "7"), *votes(2, "x"), *votes(3, r"\frac{1}{2}", "1/2", "3", "4"), *votes(4, "", "")]
    loose = make(pool, arms=["majority"])
    assert [sum(row_id == trace["row_id"] for row_id in loose.kept("majority")) for trace in pool] == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    strict = make(pool, arms=[{"name": "majority", "min_agreement": 0.6}])
    assert len(strict.kept("majority")) == 2
    assert strict.funnel("majority") == {"candidates": 12, "kept": 2, "not_majority": 10}


def test_answers_that_are_equal_vote_together() -> None:
    assert answer_hash("1,200") == answer_hash("1200.0") == answer_hash(" $1200")
    assert answer_hash("x + 1") == answer_hash("X+1") != answer_hash("x - 1")
    assert answer_hash(None) == 0 != answer_hash("")


def test_teachers_are_chosen_and_mixed_by_share() -> None:
    pool = [*pool_of(12, 0, teacher="a"), *pool_of(30, 0, teacher="b"), *pool_of(5, 0, teacher="c")]
    arms = [{"name": "ab", "kind": "correct", "teachers": {"a": 1, "b": 2}}, {"name": "only", "kind": "correct", "teachers": ["c"]}]
    found = make(pool, arms=arms)
    of = {r["row_id"]: r["origin"] for r in pool}
    assert Counter(of[row_id] for row_id in found.kept("ab")) == {"a": 12, "b": 25}
    assert found.funnel("ab") == {"candidates": 47, "kept": 37, "other_teacher": 5, "share": 5}
    assert {of[row_id] for row_id in found.kept("only")} == {"c"}


def test_orders_put_first_what_they_name() -> None:
    texts = ["Wait, let me check. Maybe not.", "The sum is five.", "But that is 4."]
    pool = [row(prompt, sample, "correct" if sample < prompt else "incorrect") for prompt in range(5) for sample in range(4)]
    pool += [row(0, 10 + number, "incorrect", text) for number, text in enumerate(texts)]
    arms = [{"name": order, "kind": "all", "order": order, "sizes": [5]} for order in ("hardest", "easiest", "balanced", "reasoning")]
    found = make(pool, arms=arms)
    of = {r["row_id"]: r["prompt_id"] for r in pool}
    assert {of[row_id] for row_id in found.kept("hardest-5")} == {"p0"}
    assert Counter(of[row_id] for row_id in found.kept("easiest-5")) == {"p4": 4, "p3": 1}
    assert [of[row_id] for row_id in found.kept("balanced-5")] == ["p0", "p1", "p2", "p3", "p4"]
    text = {r["row_id"]: r["text"] for r in pool}
    assert [text[row_id] for row_id in found.kept("reasoning-5")][:2] == [texts[0], texts[2]]


def test_caps_and_size_matching_say_what_they_cut() -> None:
    found = make(pool_of(20, 12), arms=["all", "correct", "incorrect"], match="rows", max_per_prompt=3, max_rows=14)
    assert {len(arm.rows) for arm in found.arms.values()} == {12}
    assert found.funnel("all") == {"candidates": 32, "kept": 12, "over_prompt_cap": 17, "max_rows": 1, "size_match": 2}
    assert found.funnel("incorrect") == {"candidates": 32, "kept": 12, "right_answer": 20}


def test_smaller_arms_are_subsets_of_larger_ones_and_seeds_differ() -> None:
    def chosen(rows: int, seed: int = 0) -> list[str]:
        return make(pool_of(40, 40), seed, arms=["all"], max_rows=rows).kept("all")

    assert chosen(30)[:10] == chosen(10)
    assert set(chosen(10)) != set(chosen(10, seed=1))


def test_an_empty_arm_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"'incorrect', but none of the 7 traces is left for it \(4 right_answer, 3 no_answer\); drop it"):
        make(pool_of(4, 0, 3))
    with pytest.raises(UserError, match="there are no traces"):
        make([], arms=["all"])


def test_arms_that_cannot_be_matched_mixed_or_sized_are_refused() -> None:
    apart = [row(0, 0, "correct"), row(1, 1, "incorrect")]
    with pytest.raises(UserError, match=r"match: prompts leaves no row: correct, incorrect have no prompt in common"):
        make(apart, arms=["correct", "incorrect"], match="prompts")
    with pytest.raises(UserError, match="arm 'm' wants a share of 'wrong', but no row of it is left"):
        make(pool_of(3, 0), arms=[{"name": "m", "kind": "mixed", "mix": {"correct": 1, "wrong": 1}}])
    with pytest.raises(UserError, match="arm 'all' shall have 9 rows, but 3 are left for it"):
        make(pool_of(3, 0), arms=[{"name": "all", "sizes": [2, 9]}])


def test_gold_without_reference_traces_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"none of the 5 training prompts has a reference chain of thought; .* or drop gold from curate.arms"
    ):
        make(pool_of(4, 4), prompts=prompts_of(5, with_traces=False), arms=["all", "gold"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ["all", "all"]}, "curate.arms names 'all' more than once"),
        ({"arms": ["good"]}, "arm 'good' needs a kind; allowed: all, correct, incorrect, gold, majority, human, mixed"),
        ({"arms": [{"name": "m", "kind": "mixed"}]}, "kind mixed and mix belong together"),
        ({"arms": [{"name": "all", "mix": {"correct": 1}}]}, "kind mixed and mix belong together"),
        ({"arms": [{"name": "m", "kind": "mixed", "mix": {"correct": 0}}]}, "mix.correct is 0; give more than 0"),
        ({"arms": [{"name": "all", "teachers": {"a": -1}}]}, "teachers.a is -1; give more than 0"),
        (
            {"arms": [{"name": "m", "kind": "mixed", "mix": {"gold": 1}, "teachers": {"a": 1}}]},
            "cannot hold at once; give teachers as a list",
        ),
        ({"arms": [{"name": "gold", "teachers": ["a"]}]}, "gold has no teachers"),
        ({"arms": [{"name": "all", "sizes": [3, 3]}]}, r"sizes are \[3, 3\]; give different numbers"),
        ({"arms": [{"name": "all", "sizes": [3], "max_rows": 2}]}, "give sizes or max_rows, not both"),
        ({"arms": [{"name": "all", "order": "diverse"}]}, "say how many with sizes or max_rows"),
        ({"arms": [{"name": "all", "teachers": {"a": 1}}], "match": "prompts"}, "match: prompts and the shares of arm 'all' cannot hold"),
        ({"arms": ["human"]}, "give the file of people's decisions as curate.human"),
        ({"arms": [{"name": "m", "kind": "mixed", "mix": {"human": 1}}]}, "mixes in human traces; give the file"),
        ({"filters": {"min_tokens": 9, "max_tokens": 3}}, "min_tokens=9 is more than max_tokens=3"),
        ({"filters": {"near_duplicates": {"threshold": 0.5, "scope": "pool"}}}, "LSH bands miss most pairs below 0.8"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CurateConfig.model_validate(settings)


def test_arms_with_sizes_carry_their_size_in_their_name() -> None:
    config = CurateConfig.model_validate({"arms": ["all", {"name": "small", "kind": "correct", "sizes": [100, 250]}]})
    assert config.arm_names == ["all", "small-100", "small-250"]


def test_an_arm_of_an_unknown_teacher_is_refused() -> None:
    config = CurateConfig.model_validate({"arms": [{"name": "all", "teachers": ["strong"]}]})
    with pytest.raises(ValueError, match="arm 'all' asks for teacher 'strong'; allowed: weak, other"):
        config.refuse_unknown_teachers(["weak", "other"])

"""Curation by waves: a wave by itself gives what the whole pool gives of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.curation_fake import FakeSource, WordCounts, make, prompts_of, row
from tests.unit.report_fake import config_of
from w2sr.curation.config import CurateConfig
from w2sr.curation.ledger import Ledger
from w2sr.curation.pool import GoldSource, Prompts, Source
from w2sr.curation.scan import Scanner
from w2sr.curation.waves import arms_of_pool, arms_of_wave
from w2sr.curation.write import write_arms
from w2sr.errors import UserError
from w2sr.prompts.waves import wave_bounds

TEXTS = ["one and one is two", "let me check: one and one", "two", "wait, maybe it is three after all", "I do not know"]
Rows = list[dict[str, Any]]


@st.composite
def pools(draw: st.DrawFn) -> tuple[int, Rows]:
    """Return a number of prompts, and traces of two teachers for each of them, in the order of the prompts."""
    num_prompts, rows = draw(st.integers(4, 12)), []
    for teacher in ("able", "weak"):
        for prompt in range(num_prompts):
            for sample in range(draw(st.integers(1, 3))):
                verdict = "correct" if sample == 0 else draw(st.sampled_from(["correct", "incorrect", "unverifiable"]))
                text, answer = draw(st.sampled_from(TEXTS)), draw(st.sampled_from("12"))
                rows.append(row(prompt, sample, verdict, text, teacher=teacher, answer=answer))
    return num_prompts, rows


CONFIGS = st.fixed_dictionaries(
    {
        "match": st.sampled_from(["none", "rows", "tokens", "prompts"]),
        "max_rows": st.sampled_from([None, 9]),
        "max_per_prompt": st.sampled_from([None, 2]),
        "max_per_teacher": st.sampled_from([None, 8]),
        "filters": st.sampled_from([{}, {"duplicates": True}, {"near_duplicates": {"threshold": 0.9}, "min_tokens": 3}]),
    }
)
ORDERS = st.sampled_from(["random", "hardest", "easiest", "balanced", "reasoning"])


def written(folder: Path, sources: Sequence[Source], prompts: Prompts, config: CurateConfig, wave: int | None) -> dict[str, Rows]:
    """Curate, the whole pool or one wave, and return the rows of each arm's file."""
    folder.mkdir()
    sources = [*sources, GoldSource(prompts)]
    facts = Scanner(config, prompts, Ledger(config.contamination, []), WordCounts(), 0, ["<eos>"]).scan(sources)
    num = len(prompts)
    arms = arms_of_pool(facts, num, config) if wave is None else arms_of_wave(facts, num, config, wave)
    write_arms(folder, arms, sources, prompts, facts, {}, lambda _: None)
    return {arm.name: pq.read_table(folder / f"{arm.name}.parquet").to_pylist() for arm in arms}


@settings(max_examples=60, deadline=None)
@given(pool=pools(), values=CONFIGS, order=ORDERS, waves=st.integers(1, 4))
def test_a_wave_by_itself_gives_the_rows_that_the_whole_pool_gives_of_it(
    tmp_path_factory: pytest.TempPathFactory, pool: tuple[int, Rows], values: dict[str, Any], order: str, waves: int
) -> None:
    num_prompts, rows = pool
    arms = [{"name": "all", "order": order}, "correct", "gold"]
    config = CurateConfig.model_validate({"arms": arms, "waves": waves, **values})
    prompts, bounds = prompts_of(num_prompts), wave_bounds(num_prompts, waves)
    folder = tmp_path_factory.mktemp("waves")

    def sources(first: int, stop: int) -> list[Source]:
        ids = {f"p{number}" for number in range(first, stop)}
        teachers = dict.fromkeys(each["origin"] for each in rows)
        return [FakeSource(name, [each for each in rows if each["origin"] == name and each["prompt_id"] in ids]) for name in teachers]

    try:
        whole = written(folder / "whole", sources(0, num_prompts), prompts, config, None)
    except UserError:
        return  # an arm, or a wave of it, is empty
    joined: dict[str, set[str]] = {name: set() for name in whole}
    for wave, (first, stop) in enumerate(pairwise(bounds)):
        ids = {f"p{number}" for number in range(first, stop)}
        found = written(folder / str(wave), sources(first, stop), prompts.some(first, stop), config, wave)
        assert found == {name: [each for each in kept if each["prompt_id"] in ids] for name, kept in whole.items()}
        for name, kept in found.items():
            joined[name] |= {each["example_id"] for each in kept}
    assert joined == {name: {each["example_id"] for each in kept} for name, kept in whole.items()}


def pool_in_waves(per_prompt: int = 4, num_prompts: int = 8) -> Rows:
    return [row(prompt, sample, "correct", f"text {prompt} {sample}") for prompt in range(num_prompts) for sample in range(per_prompt)]


def test_numbers_of_rows_are_those_of_the_whole_arm() -> None:
    prompts = prompts_of(8)
    made = make(pool_in_waves(), prompts=prompts, waves=3, arms=[{"name": "correct", "sizes": [7, 20]}, {"name": "all", "max_rows": 10}])
    assert {name: len(arm.rows) for name, arm in made.arms.items()} == {"correct-7": 7, "correct-20": 20, "all": 10}
    bounds = wave_bounds(8, 3)
    places = made.facts.prompt[made.arms["all"].rows]
    assert [int(((places >= first) & (places < stop)).sum()) for first, stop in pairwise(bounds)] == [4, 3, 3]


def test_a_smaller_arm_is_contained_in_a_larger_one() -> None:
    made = make(pool_in_waves(num_prompts=10), prompts=prompts_of(10), waves=5, arms=[{"name": "correct", "sizes": list(range(5, 31))}])
    kept = [set(made.kept(f"correct-{size}")) for size in range(5, 31)]
    assert all(smaller < larger for smaller, larger in pairwise(kept))


def test_the_rows_of_an_arm_come_wave_by_wave() -> None:
    made = make(pool_in_waves(), prompts=prompts_of(8), waves=4, arms=["all"])
    waves = made.facts.prompt[made.arms["all"].rows] // 2
    assert waves.tolist() == sorted(waves.tolist())
    assert made.funnel("all") == {"candidates": 32, "kept": 32}


def test_an_arm_that_is_empty_in_a_wave_is_refused_by_the_wave() -> None:
    rows = [row(prompt, 0, "correct" if prompt < 4 else "incorrect") for prompt in range(8)]
    with pytest.raises(UserError, match=r"^wave 2 of 2: curate.arms asks for 'correct'.*; or set curate.waves to fewer$"):
        make(rows, prompts=prompts_of(8), waves=2, arms=["correct"])
    assert len(make(rows, prompts=prompts_of(8), arms=["correct"]).arms["correct"].rows) == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_rows": 4}, "max_rows is 4, too few for each of waves=5"),
        ({"max_per_teacher": 4}, "max_per_teacher is 4"),
        ({"arms": [{"name": "all", "max_rows": 2}]}, "max_rows of arm 'all' is 2"),
        ({"arms": [{"name": "all", "per_teacher": 2}]}, "per_teacher of arm 'all' is 2"),
        ({"arms": [{"name": "all", "sizes": [20, 3]}]}, "a size of arm 'all' is 3"),
    ],
)
def test_numbers_of_which_a_wave_has_no_share_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CurateConfig.model_validate({"waves": 5, **values})


def test_what_does_not_go_with_waves_is_refused(tmp_path: Path) -> None:
    near = {"near_duplicates": {"scope": "pool", "threshold": 0.9}}
    with pytest.raises(ValidationError, match=r"waves=2 are curated each by itself, and near_duplicates.scope=pool"):
        CurateConfig.model_validate({"waves": 2, "filters": near})
    mixture = {"mixtures": [{"name": "both", "parts": {"all": 1, "gold": 1}}]}
    with pytest.raises(ValidationError, match=r"train.mixtures draw from whole arms, and curate.waves=2 cuts them"):
        config_of(tmp_path, train=mixture, curate={"waves": 2})

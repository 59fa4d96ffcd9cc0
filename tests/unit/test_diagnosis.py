"""The tally against plain definitions, and the gate's promises."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from w2sr.diagnosis.config import GateConfig
from w2sr.diagnosis.distinct import DistinctSample
from w2sr.diagnosis.gate import gate
from w2sr.diagnosis.lengths import NUM_BINS, Lengths
from w2sr.diagnosis.rates import Rate
from w2sr.diagnosis.tally import Tally, TeacherDiagnosis
from w2sr.records import Trace, trace_id_of

GOOD = "3 + 4 = 7\n#### 7"
LOOP = "So 3 + 4 is 7, I think.\n" * 20


def trace(number: int = 0, text: str = GOOD, prompt: str = "p", finish: Any = "stop", **changes: Any) -> Trace:
    values: dict[str, Any] = {
        "trace_id": trace_id_of(prompt, "weak", number),
        "prompt_id": prompt,
        "generator": "weak",
        "sample_index": number,
        "text": text,
        "finish_reason": finish,
        "num_prompt_tokens": 9,
        "num_tokens": 0 if finish == "error" else 12,
        "seed": number,
        "template_hash": "t",
        "model_digest": "d",
        "engine": "hf",
        "error": None,
        "position": number,
    }
    return Trace(**values | changes)


def diagnosis_of(traces: list[Trace], question: str = "What is 3 + 4?") -> TeacherDiagnosis:
    tally = Tally("weak")
    for one in traces:
        tally.add(one, question)
    return tally.diagnosis()


def counted(num_good: int, num_loops: int = 0, num_unanswered: int = 0) -> TeacherDiagnosis:
    texts = [GOOD] * num_good + [LOOP] * num_loops + ["I do not know."] * num_unanswered
    return diagnosis_of([trace(number, text) for number, text in enumerate(texts)])


def test_every_rate_counts_what_its_name_says() -> None:
    found = diagnosis_of(
        [
            trace(0),
            trace(1),
            trace(2, "no mark here"),
            trace(3, "3 + 4 = 7\n#### 7", finish="length"),
            trace(4, LOOP, finish="length"),
            trace(5, "所以 7\n#### 7"),
            trace(6, "  "),
            trace(7, "", finish="error", error="the prompt has 300 tokens, the model's context 256"),
            trace(8, "", finish="error", error="the prompt has 301 tokens, the model's context 256"),
            trace(0, GOOD, prompt="q"),
        ]
    )
    assert (found.requests, found.traces) == (10, 8)
    assert {name: rate.count for name, rate in found.rates.items()} == {
        "format_valid": 4,
        "failed": 2,
        "truncated": 2,
        "no_answer": 3,
        "loop": 1,
        "stray_script": 1,
        "empty": 1,
        "duplicate_in_prompt": 2,
        "duplicate_across_prompts": 1,
    }
    assert found.rates["format_valid"].total == found.rates["failed"].total == 10
    assert found.rates["loop"].total == 8
    assert found.scripts == {"Han": 1}
    assert found.failures == {"the prompt has N tokens, the model's context N": 2}
    assert found.examples["loop"] == [trace_id_of("p", "weak", 4)]
    assert len(found.examples["not_format_valid"]) == 3
    assert found.lengths.unit == "tokens"


def test_unknown_token_counts_make_lengths_words() -> None:
    found = diagnosis_of([trace(0, num_tokens=0), trace(1)])
    assert (found.lengths.unit, found.lengths.max) == ("words", 7)


def test_kinds_of_failures_stay_few() -> None:
    found = diagnosis_of([trace(n, "", finish="error", error="kind " + "x" * n) for n in range(60)])
    assert len(found.failures) == 21
    assert sum(found.failures.values()) == 60


def test_an_empty_tally_has_no_rates_to_divide() -> None:
    found = Tally("weak").diagnosis()
    assert found.rates["format_valid"].to_json() == {"count": 0, "total": 0, "value": 0.0, "low": 0.0, "high": 1.0}
    assert gate(found, GateConfig()) == []


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from(["a", "b", "c"])), max_size=30))
def test_duplicates_are_those_of_the_definition(rows: list[tuple[str, str]]) -> None:
    rates = diagnosis_of([trace(number, text, prompt) for number, (prompt, text) in enumerate(rows)]).rates
    pairs, texts = set(rows), {text for _, text in rows}
    assert rates["duplicate_in_prompt"].count == len(rows) - len(pairs)
    assert rates["duplicate_across_prompts"].count == len(pairs) - len(texts)


def test_beyond_its_capacity_a_distinct_sample_still_knows_the_share() -> None:
    sample = DistinctSample(capacity=4096)
    for number in range(40_000):
        sample.add(f"text {number % 20_000}")  # every text twice: half of them repeat one
    assert not sample.is_exact
    assert 2048 <= sample.distinct <= 4096
    assert sample.sampled == 2 * sample.distinct


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0.9, 0.95, 0.98]))
def test_the_interval_is_the_exact_one(count: int, extra: int, confidence: float) -> None:
    rate = Rate(count, count + extra)
    expected = stats.binomtest(count, count + extra).proportion_ci(confidence, method="exact")
    assert rate.interval(confidence) == pytest.approx((expected.low, expected.high))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50))
def test_lengths_are_those_of_numpy(lengths: list[int]) -> None:
    found = Lengths.of(Counter(lengths), "tokens")
    assert found.mean == pytest.approx(np.mean(lengths))
    assert (found.median, found.p90, found.p99) == tuple(np.quantile(lengths, [0.5, 0.9, 0.99], method="inverted_cdf"))
    assert sum(found.histogram) == len(lengths)
    assert len(found.bars()) == NUM_BINS
    assert all((bar == " ") == (number == 0) for bar, number in zip(found.bars(), found.histogram))


def test_a_good_teacher_passes_and_garbage_does_not() -> None:
    assert gate(counted(200), GateConfig()) == []
    (reason,) = gate(counted(100, num_unanswered=100), GateConfig(), "runs/x")
    assert reason.startswith("teacher weak: only 100 of 200 (50.0 %, interval 41.")
    for part in ("min_format_valid asks for 90 %", "no answer 100", "w2sr diagnose runs/x --show ", "generate.gate.min_format_valid=0"):
        assert part in reason
    reasons = gate(counted(150, num_loops=50), GateConfig())
    assert len(reasons) == 2
    assert "50 of 200 (25.0 %" in reasons[1]
    assert "generate.gate.max_loops=1" in reasons[1]
    assert trace_id_of("p", "weak", 150) in reasons[1]


def test_few_traces_stop_nothing_by_chance() -> None:
    assert gate(counted(2, num_loops=1), GateConfig(min_format_valid=0)) == []
    assert gate(counted(1, num_unanswered=1), GateConfig()) == []
    assert gate(counted(0, num_loops=3), GateConfig()) != []


def test_a_gate_that_is_off_stops_nothing() -> None:
    assert gate(counted(0, num_loops=100), GateConfig(min_format_valid=0, max_loops=1)) == []


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 0.99))
def test_a_stop_is_rarer_than_one_in_a_hundred_at_the_limit_and_more_bad_traces_never_pass(good: int, bad: int, limit: float) -> None:
    def stops(num_bad: int, total: int) -> list[bool]:
        rates = {name: Rate(0, total) for name in ("no_answer", "truncated", "failed")}
        rates |= {"format_valid": Rate(total - num_bad, total), "loop": Rate(num_bad, total)}
        made = TeacherDiagnosis(
            "weak", total, total, rates, {}, {}, Lengths.of(Counter(), "words"), {"loop": ["a"], "not_format_valid": ["a"]}
        )
        config = GateConfig(min_format_valid=limit, max_loops=limit)
        reasons = " ".join(gate(made, config))
        return ["min_format_valid asks" in reasons, "max_loops allows" in reasons]

    total = good + bad
    now, worse = stops(bad, total), stops(min(bad + 1, total), total)
    assert all(after >= before for before, after in zip(now, worse))
    if now[0]:
        assert stats.binom.cdf(total - bad, total, limit) < 0.0101
    if now[1]:
        assert stats.binom.sf(bad - 1, total, limit) < 0.0101


def test_a_gate_refuses_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        GateConfig(max_loops=2)

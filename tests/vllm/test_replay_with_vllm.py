"""`w2sr replay` of a trace that vLLM made: the same request reaches the engine; the same answer is hoped for and not promised."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.pool import Pool
from tests.vllm.test_generate_with_vllm import QUESTIONS, make_run, traces_of
from w2sr.run import Run
from w2sr.stages import generate
from w2sr.teachers import replay

__all__ = ["make_run"]  # a fixture


def test_a_trace_of_vllm_is_asked_for_again(
    make_run: Callable[..., Run],
    smollm2: Path,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "open_pool", lambda *_: contextlib.nullcontext(pool))
    run = make_run(smollm2, QUESTIONS[:2])
    generate.run(run)
    before = traces_of(run)[4]
    original = replay.original_of(run, before, "generate/small")
    assert [request.position for request in original.requests] == [before.position]
    assert original.changes() == []
    after = replay.make_again(run, original)
    assert replay.made_otherwise(before, after) == []
    assert (after.trace_id, after.seed, after.num_prompt_tokens) == (before.trace_id, before.seed, before.num_prompt_tokens)
    # Not the texts: what else vLLM decodes at the time changes its rounding.
    assert after.error is None
    assert after.text

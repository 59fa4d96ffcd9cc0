"""Which traces are fit to train on, whatever their verdict. Every refusal has a short code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from w2sr.curation.config import CurateConfig
from w2sr.records import Trace, Verification


class Judged(NamedTuple):
    """A trace and its verdict."""

    trace: Trace
    verification: Verification


def refusal(judged: Judged, config: CurateConfig, special_tokens: Sequence[str] = ()) -> str | None:
    """Return why a trace is unfit, or None.

    In this order: "error" (the engine failed), "truncated" (ended by the token limit, even when it holds an answer), the verifier's reason
    for an unverifiable trace ("no_answer", "timeout", ...), "loop", "special_token" (the text holds one of the student's `special_tokens`,
    which its tokenizer would read as a turn or an end).
    """
    trace, verification = judged
    if trace.finish_reason == "error":
        return "error"
    if trace.finish_reason == "length":
        return "truncated"
    if verification.verdict == "unverifiable":
        return verification.reason
    if unique_word_ratio(trace.text) < config.min_unique_word_ratio:
        return "loop"
    if any(token in trace.text for token in special_tokens):
        return "special_token"
    return None


def unique_word_ratio(text: str) -> float:
    """Return the number of distinct words over the number of words; 1.0 for a text without words."""
    words = text.split()
    return len(set(words)) / len(words) if words else 1.0


def repeats(fit: Iterable[Judged]) -> set[str]:
    """Return the ids of traces whose text is that of an earlier trace of the same prompt."""
    seen: set[tuple[str, str]] = set()
    repeated = set()
    for trace, _ in fit:
        key = (trace.prompt_id, trace.text)
        if key in seen:
            repeated.add(trace.trace_id)
        seen.add(key)
    return repeated

"""Training sets ("arms") out of one pool of judged traces.

Invariants: for every arm, candidates = kept + rejected by reason; what is kept depends on the seed and the traces, not on their order; a
smaller arm of the same seed is a subset of a larger one; with match: rows all arms have the same size.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from w2sr.curation.config import ArmName, CurateConfig
from w2sr.curation.filters import Judged, refusal, repeats
from w2sr.errors import UserError
from w2sr.records import Example, Prompt, Reject


@dataclass(slots=True)
class Arm:
    """One training set: what is in it, and for everything that is not, why. Candidates are traces; for gold they are prompts."""

    name: str
    num_candidates: int
    examples: list[Example]
    rejects: list[Reject] = field(default_factory=list)

    def funnel(self) -> dict[str, int]:
        """Return {"candidates": n, "kept": n, <reason>: n, ...}: candidates = kept + the reasons."""
        reasons = Counter(reject.reason for reject in self.rejects)
        assert self.num_candidates == len(self.examples) + reasons.total(), f"arm {self.name} lost a row"
        return {"candidates": self.num_candidates, "kept": len(self.examples), **dict(sorted(reasons.items()))}

    def keep_first(self, number: int, reason: str) -> None:
        """Reject all examples but the first `number`."""
        self.rejects.extend(_reject(self.name, example, reason) for example in self.examples[number:])
        del self.examples[number:]


def make_arms(
    pool: Iterable[Judged], prompts: Sequence[Prompt], config: CurateConfig, seed: int, special_tokens: Sequence[str] = ()
) -> list[Arm]:
    """Return the configured arms, in the order of `config.arms`; examples are in an order shuffled by `seed`.

    `prompts` are all training prompts, `special_tokens` the student's (see filters.refusal). Raises UserError for an empty arm.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    shuffled = sorted(pool, key=lambda judged: _rank(seed, judged.trace.trace_id))
    unfit = {judged.trace.trace_id: reason for judged in shuffled if (reason := refusal(judged, config, special_tokens)) is not None}
    if config.drop_duplicates:
        unfit |= dict.fromkeys(repeats(judged for judged in shuffled if judged.trace.trace_id not in unfit), "duplicate")
    arms = []
    for name in dict.fromkeys(config.arms):
        arm = _gold_arm(prompts, seed) if name == "gold" else _trace_arm(name, shuffled, unfit, by_id)
        _cap_prompts(arm, config.max_per_prompt)
        _refuse_empty(arm)
        arms.append(arm)
    _cut(arms, config)
    return arms


def _trace_arm(name: ArmName, shuffled: list[Judged], unfit: dict[str, str], prompts: dict[str, Prompt]) -> Arm:
    arm = Arm(name, len(shuffled), [])
    for trace, verification in shuffled:
        example = Example(
            example_id=trace.trace_id,
            prompt_id=trace.prompt_id,
            question=prompts[trace.prompt_id].question,
            text=trace.text,
            origin=trace.generator,
            trace_id=trace.trace_id,
            verdict=verification.verdict,
        )
        reason = unfit.get(trace.trace_id) or _not_a_member(name, verification.verdict)
        if reason is None:
            arm.examples.append(example)
        else:
            arm.rejects.append(_reject(name, example, reason))
    return arm


def _not_a_member(name: ArmName, verdict: str) -> str | None:
    if name == "correct" and verdict != "correct":
        return "wrong_answer"
    if name == "incorrect" and verdict != "incorrect":
        return "right_answer"
    return None


def _gold_arm(prompts: Sequence[Prompt], seed: int) -> Arm:
    arm = Arm("gold", len(prompts), [])
    for prompt in sorted(prompts, key=lambda prompt: _rank(seed, prompt.prompt_id)):
        text = prompt.reference_trace or ""
        example = Example(f"gold-{prompt.prompt_id}", prompt.prompt_id, prompt.question, text, "gold", None, None)
        if text:
            arm.examples.append(example)
        else:
            arm.rejects.append(_reject("gold", example, "no_reference_trace"))
    return arm


def _cap_prompts(arm: Arm, most: int | None) -> None:
    if most is None:
        return
    taken: Counter[str] = Counter()
    kept = []
    for example in arm.examples:
        taken[example.prompt_id] += 1
        if taken[example.prompt_id] <= most:
            kept.append(example)
        else:
            arm.rejects.append(_reject(arm.name, example, "over_prompt_cap"))
    arm.examples = kept


def _cut(arms: list[Arm], config: CurateConfig) -> None:
    if config.max_rows is not None:
        for arm in arms:
            arm.keep_first(config.max_rows, "max_rows")
    if config.match == "rows":
        smallest = min(len(arm.examples) for arm in arms)
        for arm in arms:
            arm.keep_first(smallest, "size_match")


def _refuse_empty(arm: Arm) -> None:
    if arm.examples:
        return
    if arm.name == "gold":
        raise UserError(
            f"curate.arms asks for gold, but none of the {arm.num_candidates} training prompts has a reference chain of thought; "
            f"name its column with prompts.source.fields.reference_trace (reasoning-gym: use the task chain_sum), "
            f"or drop gold from curate.arms"
        )
    reasons = ", ".join(f"{number} {reason}" for reason, number in Counter(reject.reason for reject in arm.rejects).most_common())
    raise UserError(
        f"curate.arms asks for {arm.name!r}, but none of the {arm.num_candidates} traces is left for it "
        f"({reasons or 'there are no traces'}); drop it from curate.arms, relax the filters under curate, "
        f"or look at the teacher's traces and verify.grader"
    )


def _reject(arm: str, example: Example, reason: str) -> Reject:
    return Reject(arm, example.trace_id or example.example_id, example.prompt_id, reason)


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{key}".encode()).digest()

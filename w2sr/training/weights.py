"""What a trace counts in the loss, from what is known of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from w2sr.curation.facts import answer_hash
from w2sr.grading.extract import extract_answers
from w2sr.records import Example
from w2sr.training.loss_config import LossConfig


@dataclass(frozen=True)
class Agreement:
    """The final answers in an arm: of each prompt, how many traces give each (as hashes; 0: none), and how many traces there are."""

    votes: Mapping[str, Counter[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Agreement:
        """Count the answers of an arm."""
        votes: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for example in examples:
            votes[example.prompt_id][_answer(example)] += 1
        return cls(votes)

    def share(self, example: Example) -> float:
        """Return the share of the traces of the example's prompt with its final answer, itself included; without one, only itself."""
        votes, answer = self.votes[example.prompt_id], _answer(example)
        return (votes[answer] if answer else 1) / votes.total()


def weigher(config: LossConfig, examples: Callable[[], Iterable[Example]]) -> Callable[[Example], float] | None:
    """Return `row_weight` for the examples of an arm, which it reads once where it must; None when all traces count 1."""
    if not config.trace_weights:
        return None
    agreement = Agreement.of(examples()) if config.agreement_power else Agreement()
    return lambda example: row_weight(example, config, agreement)


def row_weight(example: Example, config: LossConfig, agreement: Agreement) -> float:
    """Return what an example counts in the loss; `agreement`: of its whole arm."""
    weight = config.teacher_weights.get(example.origin, 1.0)
    if example.verdict is not None:
        weight *= config.verdict_weights.get(example.verdict, 1.0)
    if config.agreement_power:
        weight *= agreement.share(example) ** config.agreement_power
    return weight


def _answer(example: Example) -> int:
    found = extract_answers(example.text)
    return answer_hash(found.last) if found else 0

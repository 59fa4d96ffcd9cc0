"""How teachers differ: from each other on the same prompt, and each from itself over its samples. Everything is a mean over prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations, pairwise

from w2sr.diagnosis.means import Mean
from w2sr.grading.numbers import parse_number

Answer = Fraction | str
Bigrams = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """One trace of a prompt. `answer` None: it gives none. `correct` None: not verified."""

    text: str
    answer: Answer | None
    correct: bool | None


@dataclass
class Diversity:
    """One teacher's samples of a prompt, over prompts with at least two of them.

    `distinct_answers`: different final answers over samples with one. `majority`: share of the most frequent answer. `distinct_bigrams`:
    different word pairs over all word pairs of the samples together ("distinct-2", Li et al. 2016, arXiv 1510.03055); 1 means that nothing
    is said twice. `solved_by_any` (of every prompt, also with one sample): at least one sample is correct.
    """

    distinct_answers: Mean = field(default_factory=Mean)
    majority: Mean = field(default_factory=Mean)
    distinct_bigrams: Mean = field(default_factory=Mean)
    solved_by_any: Mean = field(default_factory=Mean)

    def add(self, samples: Sequence[Sample]) -> None:
        """Take the samples of one prompt in."""
        verdicts = [sample.correct for sample in samples if sample.correct is not None]
        if verdicts:
            self.solved_by_any.add(float(any(verdicts)))
        if len(samples) < 2:
            return
        answers = Counter(sample.answer for sample in samples if sample.answer is not None)
        if answers.total() > 1:
            self.distinct_answers.add(len(answers) / answers.total())
            self.majority.add(answers.most_common(1)[0][1] / answers.total())
        pairs = [pair for sample in samples for pair in _pairs(sample.text)]
        if pairs:
            self.distinct_bigrams.add(len(set(pairs)) / len(pairs))


@dataclass
class Agreement:
    """Two teachers on the prompts that both answered. With several samples: of a sample of the one and a sample of the other, at random.

    `same_answer`: they end in the same final answer. `both`, `only_first`, `only_second`, `neither` are correct. `solved_by_any`: at least
    one sample of either is correct. `shared_bigrams`: word pairs that the first samples have in common over those that they have together
    (Jaccard's index); low means that they say it differently.
    """

    same_answer: Mean = field(default_factory=Mean)
    both: Mean = field(default_factory=Mean)
    only_first: Mean = field(default_factory=Mean)
    only_second: Mean = field(default_factory=Mean)
    neither: Mean = field(default_factory=Mean)
    solved_by_any: Mean = field(default_factory=Mean)
    shared_bigrams: Mean = field(default_factory=Mean)

    def add(self, first: Sequence[Sample], second: Sequence[Sample], bigrams: tuple[Bigrams, Bigrams]) -> None:
        """Take one prompt in: both teachers' samples, and the word pairs of the first sample of each."""
        counts, others = (Counter(sample.answer for sample in samples if sample.answer is not None) for samples in (first, second))
        same = sum(number * others[answer] for answer, number in counts.items())
        self.same_answer.add(same / (len(first) * len(second)))
        together = bigrams[0] | bigrams[1]
        if together:
            self.shared_bigrams.add(len(bigrams[0] & bigrams[1]) / len(together))
        if any(sample.correct is None for sample in (*first, *second)):
            return
        one, other = (sum(bool(sample.correct) for sample in samples) / len(samples) for samples in (first, second))
        self.both.add(one * other)
        self.only_first.add(one * (1 - other))
        self.only_second.add((1 - one) * other)
        self.neither.add((1 - one) * (1 - other))
        self.solved_by_any.add(float(one > 0 or other > 0))


@dataclass
class Comparison:
    """All teachers of a run. `solved_by_any`: share of the prompts that anybody was asked for which anybody solved."""

    diversity: dict[str, Diversity] = field(default_factory=dict)
    agreement: dict[tuple[str, str], Agreement] = field(default_factory=dict)
    solved_by_any: Mean = field(default_factory=Mean)

    def add(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Take one prompt in: the samples of every teacher that has some, always in the same order of teachers."""
        for teacher, own in samples.items():
            self.diversity.setdefault(teacher, Diversity()).add(own)
        verdicts = [sample.correct for own in samples.values() for sample in own if sample.correct is not None]
        if verdicts:
            self.solved_by_any.add(float(any(verdicts)))
        bigrams = {teacher: frozenset(_pairs(own[0].text)) for teacher, own in samples.items()} if len(samples) > 1 else {}
        for first, second in combinations(samples, 2):
            pair = self.agreement.setdefault((first, second), Agreement())
            pair.add(samples[first], samples[second], (bigrams[first], bigrams[second]))


def answer_key(answer: str) -> Answer:
    """Return what equal answers have in common: the number, if it is one; else the text without white space and case.

    Expressions that are equal but written differently count as different here; the verdicts do not depend on this.
    """
    number = parse_number(answer)
    return number if number is not None else "".join(answer.split()).casefold()


def _pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(pairwise(words))

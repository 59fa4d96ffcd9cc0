"""Verdicts without reference answers: the answer that most samples of most teachers agree on is taken for the right one.

Agreement is no proof: teachers of one kind make the same mistakes. The share of votes is stored with each verdict, so that a threshold can
be set afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from w2sr.grading.extract import Answers
from w2sr.grading.graders import Judgement, Question

# How answers are compared: each question's judgement (Grader.judge).
Judge = Callable[[Iterable[Question]], Mapping[Question, Judgement]]
TIE = Judgement("unverifiable", "tie")
TOO_FEW = Judgement("unverifiable", "too_few_answers")
UNDECIDED = Judgement("unverifiable", "undecided")
MAJORITY = Judgement("correct", "majority")
MINORITY = Judgement("incorrect", "minority")


@dataclass
class Ballot:
    """The final answers to one prompt, each text with its number of votes; filled by `cast`."""

    votes: dict[str, int] = field(default_factory=dict)

    def cast(self, answer: str) -> None:
        """Count one trace's final answer."""
        self.votes[answer] = self.votes.get(answer, 0) + 1

    @property
    def num_answers(self) -> int:
        """All votes."""
        return sum(self.votes.values())


@dataclass(frozen=True)
class Election:
    """The outcome for one prompt: the judgement of each answer text, and the winner's share of the votes (None without a winner)."""

    judgements: Mapping[str, Judgement]
    agreement: float | None

    def judgement(self, answer: str) -> Judgement:
        """Return the judgement of an answer; one that nobody voted for (a first answer that was overwritten) is undecided."""
        return self.judgements.get(answer, UNDECIDED)


def count_votes(
    grader: str, ballots: Mapping[str, Ballot], judge: Judge, min_answers: int, metadata: Mapping[str, str]
) -> dict[str, Election]:
    """Return the election of each prompt.

    Answers that the grader calls equal form one class; the class with the most votes wins, a tie has no winner, and fewer than
    `min_answers` votes decide nothing. An answer that cannot be compared with the winner is undecided, not wrong. `metadata`: that of each
    prompt, which the choice grader needs.
    """
    classes: dict[str, list[list[str]]] = {prompt_id: [] for prompt_id in ballots}
    waiting = {prompt_id: sorted(ballot.votes, key=lambda text: (-ballot.votes[text], text)) for prompt_id, ballot in ballots.items()}
    verdicts: dict[tuple[str, str, str], str] = {}
    # Round by round: the next answer of every prompt is compared with all classes it has so far, so that workers get large batches.
    while any(waiting.values()):
        questions = {}
        for prompt_id, answers in waiting.items():
            for group in classes[prompt_id] if answers else ():
                questions[prompt_id, answers[0], group[0]] = Question(grader, answers[0], group[0], metadata.get(prompt_id, ""))
        judged = judge(questions.values())
        verdicts.update({key: judged[question].verdict for key, question in questions.items()})
        for prompt_id, answers in waiting.items():
            if answers:
                _place(answers.pop(0), classes[prompt_id], prompt_id, verdicts)
    return {prompt_id: _elect(ballot, classes[prompt_id], prompt_id, verdicts, min_answers) for prompt_id, ballot in ballots.items()}


def ballots_of(answers: Iterable[tuple[str, Answers]]) -> dict[str, Ballot]:
    """Return the ballot of each prompt from (prompt_id, answers of one trace) pairs."""
    ballots: dict[str, Ballot] = defaultdict(Ballot)
    for prompt_id, found in answers:
        ballots[prompt_id].cast(found.last)
    return ballots


def _place(answer: str, groups: list[list[str]], prompt_id: str, verdicts: Mapping[tuple[str, str, str], str]) -> None:
    for group in groups:
        if verdicts[prompt_id, answer, group[0]] == "correct":
            group.append(answer)
            return
    groups.append([answer])


def _elect(
    ballot: Ballot, groups: Sequence[list[str]], prompt_id: str, verdicts: Mapping[tuple[str, str, str], str], min_answers: int
) -> Election:
    if ballot.num_answers < min_answers:
        return Election(dict.fromkeys(ballot.votes, TOO_FEW), None)
    sizes = sorted(((sum(ballot.votes[text] for text in group), group) for group in groups), key=lambda pair: -pair[0])
    if len(sizes) > 1 and sizes[0][0] == sizes[1][0]:
        return Election(dict.fromkeys(ballot.votes, TIE), None)
    size, winner = sizes[0]
    judgements = dict.fromkeys(winner, MAJORITY)
    for _, group in sizes[1:]:
        # Classes were compared when the later one was made; either may have been the first.
        verdict = verdicts.get((prompt_id, group[0], winner[0])) or verdicts.get((prompt_id, winner[0], group[0]))
        judgements |= dict.fromkeys(group, MINORITY if verdict == "incorrect" else UNDECIDED)
    return Election(judgements, size / ballot.num_answers)

"""Which rows of the pool make which arm: numbers only, no text is looked at.

Invariants: for every arm, candidates = kept + rejected by reason; what is kept depends on the seed and the rows, not on their order or
the order of teachers; with one order a smaller arm is contained in a larger one; matched arms have as many rows, or the same prompts, or as
many tokens up to one row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from w2sr.curation.config import ArmConfig, CurateConfig
from w2sr.curation.facts import Bools, Facts, Ints, majority_answers, pass_rates
from w2sr.curation.order import interleaved, most_diverse, nth, ordered
from w2sr.curation.pool import GOLD, HUMAN
from w2sr.curation.rewrite import Rewrite
from w2sr.errors import UserError
from w2sr.prompts.waves import share_of

KEPT = 0
NO_CANDIDATE = -1


@dataclass(slots=True)
class Arm:
    """One training set. `status` says of each row of the pool: KEPT, NO_CANDIDATE or the code of the reason why not; `rows` in order.

    `rewrite`: how its texts are rewritten (rewrite.py).
    """

    name: str
    status: npt.NDArray[np.int16]
    rows: Ints
    rewrite: Rewrite | None = None

    def cut(self, number: int, code: int) -> None:
        """Reject all rows but the first `number`."""
        self.keep(np.arange(len(self.rows)) < number, code)

    def keep(self, mask: Bools, code: int) -> None:
        """Reject the rows where `mask`, [rows], is false."""
        self.status[self.rows[~mask]] = code
        self.rows = self.rows[mask]

    def funnel(self, names: list[str]) -> dict[str, int]:
        """Return {"candidates": n, "kept": n, <reason>: n, ...}: candidates = kept + the reasons."""
        codes, numbers = np.unique(self.status, return_counts=True)
        found = Counter({int(code): int(number) for code, number in zip(codes, numbers)})
        candidates = len(self.status) - found.pop(NO_CANDIDATE, 0)
        kept = found.pop(KEPT, 0)
        assert kept == len(self.rows), f"arm {self.name} lost a row"
        assert candidates == kept + found.total(), f"arm {self.name} lost a row"
        return {"candidates": candidates, "kept": kept, **dict(sorted((names[code], number) for code, number in found.items()))}


class ArmMaker:
    """Makes the arms of one pool, or of one of its waves (from 0), with that wave's share of every number of rows."""

    def __init__(self, facts: Facts, num_prompts: int, config: CurateConfig, wave: int = 0) -> None:
        self.facts = facts
        self.config = config
        self._wave = wave
        self.rates = pass_rates(facts, num_prompts)
        self._num_prompts = num_prompts
        self._traces = ~facts.of_source(GOLD)

    def make(self) -> list[Arm]:
        """Return the configured arms, in order. Raises UserError for an arm without rows, or with fewer than its largest size."""
        arms: list[Arm] = []
        matched: list[Arm] = []
        for config in self.config.arms:
            arm = self._arm(config)
            if config.sizes:
                arms += [self._sized(arm, size) for size in config.sizes]
            else:
                arms.append(arm)
                matched.append(arm)
        self._match(matched)
        return arms

    def _arm(self, config: ArmConfig) -> Arm:
        facts = self.facts
        groups = _Members(facts, config, self._majority(config)).groups()
        arm = Arm(config.name, groups.status, np.flatnonzero(groups.status == KEPT), config.rewrite)
        per_prompt = config.per_prompt or self.config.max_per_prompt
        per_teacher = config.per_teacher or self.config.max_per_teacher
        largest = max(config.sizes, default=config.max_rows or self.config.max_rows)
        largest = None if largest is None else self._share(largest)
        arm.rows = ordered(arm.rows, config.order, facts, self.rates)
        if per_prompt is not None:
            arm.keep(nth(facts.prompt[arm.rows].astype(np.int64)) < per_prompt, facts.codes["over_prompt_cap"])
        if config.order == "diverse":
            assert largest is not None, "the configuration demands a number"
            arm.rows = most_diverse(arm.rows, largest, facts)
        if per_teacher is not None:
            arm.keep(nth(facts.source[arm.rows].astype(np.int64)) < self._share(per_teacher), facts.codes["over_teacher_cap"])
        if groups.shares:
            self._keep_shares(arm, groups)
        _refuse_empty(arm, facts.codes.names, config)
        if largest is not None and not config.sizes:
            arm.cut(largest, facts.codes["max_rows"])
        return arm

    def _majority(self, config: ArmConfig) -> Bools:
        """Return which rows give their prompt's most frequent answer; all false unless the arm wants to know."""
        if config.family != "majority":
            return np.zeros(self.facts.num_rows, bool)
        voters = self._traces & ~self.facts.of_source(HUMAN) & ~self.facts.has("error", "truncated")
        leaders, shares = majority_answers(self.facts, voters, self._num_prompts)
        leader = leaders[self.facts.prompt]
        found: Bools = (leader != 0) & (self.facts.answer == leader) & (shares[self.facts.prompt] >= config.min_agreement)
        return found

    def _keep_shares(self, arm: Arm, groups: _Groups) -> None:
        own = groups.of_row[arm.rows]
        empty = [name for number, name in enumerate(groups.names) if not (own == number).any()]
        if empty:
            raise UserError(f"arm {arm.name!r} wants a share of {empty[0]!r}, but no row of it is left; leave it out or relax the filters")
        order, number = interleaved(own, dict(enumerate(groups.shares)))
        arm.rows = arm.rows[order]
        arm.cut(number, self.facts.codes["share"])

    def _share(self, number: int) -> int:
        return share_of(number, self._wave, self.config.waves)

    def _sized(self, arm: Arm, size: int) -> Arm:
        wanted = self._share(size)
        if wanted > len(arm.rows):
            raise UserError(
                f"arm {arm.name!r} shall have {wanted} rows, but {len(arm.rows)} are left for it; lower its sizes, relax its caps or the "
                "filters, or make more traces"
            )
        small = Arm(f"{arm.name}-{size}", arm.status.copy(), arm.rows, arm.rewrite)
        small.cut(wanted, self.facts.codes["size"])
        return small

    def _match(self, arms: list[Arm]) -> None:
        facts, match = self.facts, self.config.match
        if not arms or match == "none":
            return
        if match == "rows":
            smallest = min(len(arm.rows) for arm in arms)
            for arm in arms:
                arm.cut(smallest, facts.codes["size_match"])
        elif match == "tokens":
            sums = [np.cumsum(self._tokens(arm), dtype=np.int64) for arm in arms]
            budget = min(int(total[-1]) for total in sums)
            for arm, total in zip(arms, sums, strict=True):
                arm.cut(int((total <= budget).sum()), facts.codes["token_match"])
        else:
            prompts = [facts.prompt[arm.rows].astype(np.int64) for arm in arms]
            shared = np.min([np.bincount(own, minlength=self._num_prompts) for own in prompts], axis=0)
            for arm, own in zip(arms, prompts, strict=True):
                arm.keep(nth(own) < shared[own], facts.codes["prompt_match"])
        if any(not len(arm.rows) for arm in arms):
            names = ", ".join(arm.name for arm in arms)
            raise UserError(f"curate.match: {match} leaves no row: {names} have no prompt in common; use match: rows, or other arms")

    def _tokens(self, arm: Arm) -> Ints:
        """Return the supervised tokens of an arm's rows, as they will be trained on."""
        tokens = self.facts.tokens if arm.rewrite is None else self.facts.rewrites[arm.rewrite].tokens
        found: Ints = tokens[arm.rows].astype(np.int64)
        return found


@dataclass
class _Groups:
    """Who is a member of an arm, and for shares the group of each row."""

    status: npt.NDArray[np.int16]
    of_row: Ints
    names: list[str]
    shares: list[float]


class _Members:
    """Says of each row whether it may enter an arm, and if not, why: first what ails the row, then what the arm does not want."""

    def __init__(self, facts: Facts, config: ArmConfig, in_majority: Bools) -> None:
        self.facts = facts
        self.config = config
        self.is_human = facts.of_source(HUMAN)
        self.in_majority = in_majority

    def groups(self) -> _Groups:
        """Return the members."""
        facts, config = self.facts, self.config
        wanted, unwanted = self._wanted()
        status = np.where(wanted, KEPT, unwanted).astype(np.int16)
        if config.teachers is not None:
            status[(status == KEPT) & ~facts.of_source(*config.teachers)] = facts.codes["other_teacher"]
        if config.rewrite is not None:
            status[(status == KEPT) & facts.rewrites[config.rewrite].refused] = facts.codes["not_rewritable"]
        status[facts.defect != 0] = facts.defect[facts.defect != 0]
        ails = ~np.isin(facts.outcome, [facts.codes[outcome] for outcome in self._complete()])
        ails &= facts.defect != facts.codes["rejected_by_person"]
        ails &= facts.defect != facts.codes["edited"]
        status[ails] = facts.outcome[ails]
        status[~self._candidates()] = NO_CANDIDATE
        names, shares, of_row = self._shares()
        return _Groups(status, of_row, names, shares)

    def _candidates(self) -> Bools:
        gold = self.facts.of_source(GOLD)
        if self.config.family == "gold":
            return gold
        return np.ones(len(gold), bool) if "gold" in self.config.mix else ~gold

    def _complete(self) -> list[str]:
        """Return the outcomes with which a row can enter this arm at all."""
        family = self.config.family
        parts: list[str] = [*(self.config.causes if family == "incorrect" else []), *self.config.mix]
        waived = [part for part in parts if part in ("no_answer", "truncated")]
        if family in ("majority", "human"):
            # Neither needs a verdict: reasons for which the verifier had none are no defect here.
            never = {"error", "truncated", "no_reference_trace", *([] if family == "human" else ["no_answer"])}
            waived += [name for name in self.facts.codes.names if name and name not in never]
        return ["correct", "wrong", "gold", *waived]

    def _wanted(self) -> tuple[Bools, npt.NDArray[np.int16]]:
        """Return which rows the arm is made for, and the code of the reason for the others."""
        facts, codes, family = self.facts, self.facts.codes, self.config.family
        every = np.ones(facts.num_rows, bool)
        if family == "incorrect":
            return facts.has(*self.config.causes), self._same(codes["right_answer"], wrong=codes["wrong_answer"])
        if family == "mixed":
            members: Bools = np.any([self._part(part) for part in self.config.mix], axis=0)
            return members, self._same(codes["not_in_mix"])
        wanted = {
            "all": every,
            "correct": facts.has("correct"),
            "gold": facts.has("gold"),
            "majority": self.in_majority,
            "human": self.is_human | facts.accepted,
        }
        reason = {"correct": "wrong_answer", "majority": "not_majority", "human": "not_human"}.get(family, "not_in_arm")
        return wanted[family], self._same(codes[reason])

    def _same(self, code: int, wrong: int | None = None) -> npt.NDArray[np.int16]:
        found = np.full(self.facts.num_rows, code, np.int16)
        if wrong is not None:
            found[self.facts.has("wrong")] = wrong
        return found

    def _part(self, part: str) -> Bools:
        """Return the rows of one part of a mix. People's traces belong to the part `human` where there is one, else to their outcome's."""
        if part == "human":
            return self.is_human | self.facts.accepted
        people = self.is_human | self.facts.accepted if "human" in self.config.mix else np.zeros(self.facts.num_rows, bool)
        return self.facts.has(part) & ~people

    def _shares(self) -> tuple[list[str], list[float], Ints]:
        config, of_row = self.config, np.full(self.facts.num_rows, -1, np.int64)
        if config.mix:
            for number, part in enumerate(config.mix):
                of_row[self._part(part)] = number
            return list(config.mix), list(config.mix.values()), of_row
        if config.weights:
            for number, name in enumerate(config.weights):
                of_row[self.facts.of_source(name)] = number
            return list(config.weights), list(config.weights.values()), of_row
        return [], [], of_row


def _refuse_empty(arm: Arm, names: list[str], config: ArmConfig) -> None:
    if len(arm.rows):
        return
    funnel = arm.funnel(names)
    candidates = funnel.pop("candidates")
    del funnel["kept"]
    if config.family == "gold" and set(funnel) <= {"no_reference_trace"}:
        raise UserError(
            f"curate.arms asks for gold, but none of the {candidates} training prompts has a reference chain of thought; "
            f"name its column with prompts.source.fields.reference_trace (reasoning-gym: use the task chain_sum), "
            f"or drop gold from curate.arms"
        )
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(funnel.items(), key=lambda item: (-item[1], item[0])))
    raise UserError(
        f"curate.arms asks for {arm.name!r}, but none of the {candidates} traces is left for it "
        f"({reasons or 'there are no traces'}); drop it from curate.arms, relax the filters under curate, "
        f"or look at the teacher's traces and verify.grader"
    )

"""Which traces train a student."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from w2sr.curation.rewrite import Rewrite
from w2sr.schema import StrictModel

Kind = Literal["all", "correct", "incorrect", "mixed", "gold", "majority", "human"]
Cause = Literal["wrong", "no_answer", "truncated"]
Part = Literal["correct", "wrong", "no_answer", "truncated", "gold", "human"]
Order = Literal["random", "hardest", "easiest", "balanced", "diverse", "reasoning"]

PLAIN_KINDS = ("all", "correct", "incorrect", "gold", "majority", "human")
"""Kinds that need no options, so that their name alone names an arm."""


class ArmConfig(StrictModel):
    """One arm: which traces may enter, in which order they are taken, and how many."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the arm in files and the report; with sizes: <name>-<size>."
    )
    kind: Kind | None = Field(
        None,
        description="all: every complete trace (W2SR); correct: right final answer (W2SR-P); incorrect: wrong (W2SR-N), by cause; "
        "mixed: parts in ratios; gold: reference traces; majority: traces that give their prompt's most frequent answer; human: written, "
        "edited or accepted by people. None: the name is the kind.",
    )
    causes: list[Cause] = Field(
        default=["wrong"],
        min_length=1,
        description="incorrect: what counts as such. A truncated trace is trained on without an end token, for it never ended.",
    )
    mix: dict[Part, float] = Field(default_factory=dict, description="mixed: share of each part, relative to the others.")
    teachers: list[str] | dict[str, float] | None = Field(
        None, description="Only these teachers' traces; as a mapping: with these shares, relative to each other. None: every teacher's."
    )
    order: Order = Field(
        "random",
        description="Which rows come first where not all are taken. random: by seed; hardest, easiest: by the share of the prompt's traces "
        "that are correct, over all teachers; balanced: every difficulty in turn; diverse: each as unlike the earlier ones as can be "
        "(greedy k-center on MinHash distance); reasoning: most words of doubt, change of mind and checking.",
    )
    per_prompt: int | None = Field(None, gt=0, description="At most this many rows of one prompt; None: curate.max_per_prompt.")
    per_teacher: int | None = Field(None, gt=0, description="At most this many rows of one teacher; None: curate.max_per_teacher.")
    max_rows: int | None = Field(None, gt=0, description="At most this many rows; None: curate.max_rows.")
    sizes: list[int] = Field(
        default_factory=list, description="Make one arm of each size, the smaller contained in the larger, in place of one arm."
    )
    rewrite: Rewrite | None = Field(
        None,
        description="Train on the traces rewritten, verdicts kept: strip_hesitation removes hesitation markers; strip_random, its control, "
        "as many other words; shuffle_steps changes the order of the steps (docs/curation.md). None: as they were written.",
    )
    min_agreement: float = Field(
        0.0, ge=0, le=1, description="majority: smallest share of a prompt's answers that the most frequent one must have."
    )

    @property
    def family(self) -> Kind:
        """The kind, given or by name."""
        assert self.kind is not None
        return self.kind

    @property
    def arm_names(self) -> list[str]:
        """Names of the arms this makes."""
        return [f"{self.name}-{size}" for size in self.sizes] or [self.name]

    @property
    def weights(self) -> dict[str, float] | None:
        """Shares of the teachers, if any are asked for."""
        return self.teachers if isinstance(self.teachers, dict) else None

    @model_validator(mode="before")
    @classmethod
    def _kind_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") is None:
            name = values.get("name")
            if name not in PLAIN_KINDS:
                raise ValueError(f"arm {name!r} needs a kind; allowed: {', '.join([*PLAIN_KINDS, 'mixed'])}")
            return {**values, "kind": name}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ArmConfig:
        where = f"arm {self.name!r}"
        if (self.kind == "mixed") != bool(self.mix):
            raise ValueError(f"{where}: kind mixed and mix belong together, for example {{kind: mixed, mix: {{correct: 1, wrong: 1}}}}")
        shares: dict[str, float] = {f"mix.{part}": share for part, share in self.mix.items()}
        shares |= {f"teachers.{teacher}": share for teacher, share in (self.weights or {}).items()}
        wrong = [key for key, share in shares.items() if not share > 0]
        if wrong:
            raise ValueError(f"{where}: {wrong[0]} is {shares[wrong[0]]:g}; give more than 0, or leave it out")
        if self.mix and self.weights:
            raise ValueError(f"{where}: mix and shares of teachers cannot hold at once; give teachers as a list")
        if self.kind == "gold" and self.teachers is not None:
            raise ValueError(f"{where}: gold has no teachers; leave teachers out")
        if any(size <= 0 for size in self.sizes) or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"{where}: sizes are {self.sizes}; give different numbers of at least 1")
        if self.sizes and self.max_rows is not None:
            raise ValueError(f"{where}: give sizes or max_rows, not both")
        return self


class NearDuplicates(StrictModel):
    """Traces that say the same in almost the same words: 3-word shingles, MinHash of 128 permutations (rensa), 8 bits of each."""

    threshold: float = Field(0.85, gt=0, lt=1, description="Estimated Jaccard similarity of the shingles from which on two are the same.")
    scope: Literal["prompt", "pool"] = Field(
        "prompt",
        description="prompt: compare traces of one prompt, every pair; pool: of all prompts, by 16 LSH bands of 8 (threshold 0.8 or more).",
    )

    @model_validator(mode="after")
    def _bands_can_see_it(self) -> NearDuplicates:
        if self.scope == "pool" and self.threshold < 0.8:
            raise ValueError(
                f"near_duplicates.threshold={self.threshold:g} with scope pool: the LSH bands miss most pairs below 0.8; "
                "give at least 0.8, or scope: prompt"
            )
        return self


class FilterConfig(StrictModel):
    """Which traces are unfit whatever their verdict; in this order, and the first reason counts."""

    min_tokens: int | None = Field(None, gt=0, description="too_short: fewer tokens of the student's tokenizer. None: off.")
    max_tokens: int | None = Field(None, gt=0, description="too_long: more tokens of the student's tokenizer. None: off.")
    loops: bool = Field(True, description="loop: the text repeats itself (w2sr/textual/loops.py).")
    min_unique_word_ratio: float = Field(
        0.0, ge=0, le=1, description="loop, too: a smaller share of distinct words. It falls with length: a crude extra; 0 is off."
    )
    stray_script_letters: int | None = Field(
        10,
        gt=0,
        description="stray_script: at least so many letters of a script that neither the question uses nor mathematics. None: off.",
    )
    answer_in_prompt: bool = Field(
        True, description="answer_in_prompt: the question states its own answer, or holds the reference trace; goes for gold, too."
    )
    duplicates: bool = Field(False, description="duplicate: the text repeats that of another trace of the prompt.")
    near_duplicates: NearDuplicates | None = Field(None, description="near_duplicate: almost repeats another trace's text. None: off.")

    @model_validator(mode="after")
    def _some_length_is_left(self) -> FilterConfig:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}: no trace could pass")
        return self


class EvalFile(StrictModel):
    """A set of questions besides the run's own."""

    path: str = Field(description="JSONL, JSON or Parquet file.")
    question: str = Field("question", description="Column with the question.")


class ContaminationConfig(StrictModel):
    """Training prompts and traces that hold evaluation questions (docs/curation.md says how it is decided)."""

    policy: Literal["report", "drop"] = Field(
        "report", description="report: count, name and keep such rows; drop: reject them from every arm as `contaminated`."
    )
    rules: list[Literal["ngram", "number"]] = Field(
        default=["ngram", "number"],
        description="ngram: the same words (numbers in one spelling); number: the same words where every number may be another one.",
    )
    ngram_words: int = Field(13, ge=5, description="Words in a row that must agree; a question with fewer is looked for as a whole.")
    min_question_words: int = Field(6, ge=3, description="Questions with fewer words that say something are not looked for.")
    min_coverage: float = Field(
        0.5, ge=0, le=1, description="ngram: share of a question's words that must be found for it to count; smaller ones are only listed."
    )
    min_number_coverage: float = Field(0.8, ge=0, le=1, description="number: the same share for this rule.")
    files: list[EvalFile] = Field(
        default_factory=list, description="Further evaluation sets, besides the run's selection and test prompts."
    )


class BudgetConfig(StrictModel):
    """What a length limit would cost (curate/budget.json); it decides nothing."""

    limits: list[int] = Field(
        default_factory=lambda: [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768],
        min_length=1,
        description="Limits on the tokens of a row (prefix, trace and end) to report on.",
    )
    hard_pass_rate: float = Field(0.25, ge=0, le=1, description="A prompt is hard when at most this share of its traces is correct.")


class CurateConfig(StrictModel):
    """Which traces train a student."""

    arms: list[ArmConfig] = Field(
        default_factory=lambda: [ArmConfig(name=name) for name in ("all", "correct", "incorrect", "gold")],
        min_length=1,
        description="Training sets, each by its name alone (all, correct, incorrect, gold, majority, human) or with options.",
    )
    match: Literal["none", "rows", "prompts", "tokens"] = Field(
        "rows",
        description="What arms have in common, so that they differ only in what they test. rows: as many as the smallest; prompts: the "
        "same prompts, each as often; tokens: as many tokens as the smallest, to less than one row. Arms with sizes are left out.",
    )
    max_rows: int | None = Field(None, gt=0, description="At most this many rows an arm; chosen by its order.")
    max_per_prompt: int | None = Field(None, gt=0, description="At most this many traces of one prompt and arm.")
    max_per_teacher: int | None = Field(None, gt=0, description="At most this many traces of one teacher and arm.")
    filters: FilterConfig = Field(default_factory=lambda: FilterConfig(), description="Which traces are unfit whatever their verdict.")
    contamination: ContaminationConfig = Field(
        default_factory=lambda: ContaminationConfig(), description="Training rows that hold evaluation questions."
    )
    human: str | None = Field(
        None, description="JSONL file with people's decisions: edited, new, rejected and accepted traces (docs/curation.md)."
    )
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig(), description="What length limits would cost.")
    waves: int = Field(
        1,
        gt=0,
        description="Cut the training prompts, in their order, into so many waves, each curated by itself and trained on in its turn: with "
        "overlap a student begins while later ones are written. Numbers of rows are shared out among them.",
    )

    @property
    def rewrites(self) -> list[Rewrite]:
        """The ways of rewriting that arms ask for."""
        return list(dict.fromkeys(arm.rewrite for arm in self.arms if arm.rewrite is not None))

    @property
    def arm_names(self) -> list[str]:
        """Names of all arms, in order."""
        return [name for arm in self.arms for name in arm.arm_names]

    def refuse_unknown_teachers(self, teachers: list[str]) -> None:
        """Raise ValueError when an arm asks for traces of a teacher that the run does not have."""
        for arm in self.arms:
            unknown = [name for name in arm.teachers or [] if name not in teachers]
            if unknown:
                raise ValueError(f"arm {arm.name!r} asks for teacher {unknown[0]!r}; allowed: {', '.join(teachers)}")

    @field_validator("arms", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return [{"name": arm} if isinstance(arm, str) else arm for arm in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> CurateConfig:
        names = self.arm_names
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise ValueError(f"curate.arms names {twice[0]!r} more than once; give each once")
        for arm in self.arms:
            if self.match == "prompts" and not arm.sizes and (arm.mix or arm.weights):
                raise ValueError(f"match: prompts and the shares of arm {arm.name!r} cannot hold at once; use match: rows or tokens")
            if arm.order == "diverse" and not arm.sizes and arm.max_rows is None and self.max_rows is None:
                raise ValueError(f"arm {arm.name!r}: order diverse says which rows come first; say how many with sizes or max_rows")
            if arm.family == "human" and self.human is None:
                raise ValueError(f"arm {arm.name!r} is of kind human; give the file of people's decisions as curate.human")
            if "human" in arm.mix and self.human is None:
                raise ValueError(f"arm {arm.name!r} mixes in human traces; give the file of people's decisions as curate.human")
        self._refuse_empty_shares()
        near = self.filters.near_duplicates
        if self.waves > 1 and near is not None and near.scope == "pool":
            raise ValueError(
                f"waves={self.waves} are curated each by itself, and near_duplicates.scope=pool compares all prompts; use prompt"
            )
        return self

    def _refuse_empty_shares(self) -> None:
        numbers = {"max_rows": self.max_rows, "max_per_teacher": self.max_per_teacher}
        for arm in self.arms:
            numbers |= {f"max_rows of arm {arm.name!r}": arm.max_rows, f"per_teacher of arm {arm.name!r}": arm.per_teacher}
            numbers[f"a size of arm {arm.name!r}"] = min(arm.sizes, default=None)
        for what, number in numbers.items():
            if number is not None and number < self.waves:
                raise ValueError(
                    f"{what} is {number}, too few for each of waves={self.waves} to have one; give at least as many, or fewer waves"
                )

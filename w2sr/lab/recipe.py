"""How each lab model is made: architecture, pre-training texts and schedule, as plain data."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from w2sr.lab import task
from w2sr.prompting import PromptStyle, messages_of

Row = tuple[list[dict[str, str]], str]
"""The messages of the prompt (empty for plain text) and the text to learn."""

PROMPT_STYLES = {"direct": PromptStyle(), "reasoning": PromptStyle(system=task.REASONING_SYSTEM_PROMPT)}
"""How a question is put; the system message is what asks for a chain of thought."""

STYLES = ("careful", "hasty", "direct", "facts")
FACTS_PER_ROW = 5
LARGEST_FACT_TOTAL = 50


@dataclass(frozen=True)
class Phase:
    """A stretch of pre-training. `mixture` maps a style of text to its share of the rows (it need not sum to 1).

    The learning rate goes in a straight line from where the phase before ended to `end_factor` times the recipe's.
    """

    num_steps: int
    mixture: Mapping[str, float]
    end_factor: float

    def __post_init__(self) -> None:
        assert set(self.mixture) <= set(STYLES), f"unknown styles in {self.mixture}"


@dataclass(frozen=True)
class ModelRecipe:
    """One lab model: its architecture, its texts and its schedule."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    phases: tuple[Phase, ...]
    batch_rows: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    min_terms: int = 5
    max_terms: int = 7
    max_merged: int = 3
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """The phase of a step (counted from 0) and the factor on the learning rate there, warm-up included."""
        first, start_factor = 0, 1.0
        for phase in self.phases:
            if step < first + phase.num_steps:
                progress = (step - first) / phase.num_steps
                factor = start_factor + (phase.end_factor - start_factor) * progress
                return phase, factor * min(1.0, (step + 1) / self.warmup_steps)
            first, start_factor = first + phase.num_steps, phase.end_factor
        raise AssertionError(f"step {step} is past the last of {self.num_steps}")


def sample_row(recipe: ModelRecipe, mixture: Mapping[str, float], rng: random.Random, reserved: frozenset[str]) -> Row:
    """One row of pre-training text. Expressions in `reserved` (the quickstart's own prompts) are never used."""
    styles = sorted(mixture)
    style = rng.choices(styles, weights=[mixture[name] for name in styles])[0]
    if style == "facts":
        return [], facts_text(rng)
    expression = task.sample_expression(rng, recipe.min_terms, recipe.max_terms)
    while expression in reserved:
        expression = task.sample_expression(rng, recipe.min_terms, recipe.max_terms)
    question = task.question_text(expression)
    if style == "direct":
        return messages_of(PROMPT_STYLES["direct"], question), task.final_answer(task.answer_of(expression))
    sizes = None
    if style == "hasty":
        num_operations = len(task.parse_expression(expression)[1])
        sizes = task.hasty_group_sizes(rng, num_operations, recipe.max_merged)
    return messages_of(PROMPT_STYLES["reasoning"], question), task.worked_chain(expression, sizes)


def facts_text(rng: random.Random) -> str:
    """Unconnected single sums and differences: "So 31 + 4 = 35; -8 - 9 = -17; ..."."""
    facts = []
    for _ in range(FACTS_PER_ROW):
        total, sign, term = rng.randint(-LARGEST_FACT_TOTAL, LARGEST_FACT_TOTAL), rng.choice("+-"), rng.randint(0, 9)
        facts.append(f" {total} {sign} {term} = {task.apply_step(total, (sign, term))}")
    return f"So{';'.join(facts)}\n"


TEACHER = ModelRecipe(
    name="teacher",
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    intermediate_size=192,
    phases=(Phase(720, {"careful": 1.0}, 0.0),),
    seed=0,
)
STUDENT = ModelRecipe(
    name="student",
    hidden_size=96,
    num_layers=3,
    num_heads=4,
    intermediate_size=288,
    phases=(
        Phase(800, {"careful": 0.9, "facts": 0.1}, 0.5),
        Phase(400, {"careful": 0.3, "hasty": 0.3, "direct": 0.35, "facts": 0.05}, 0.0),
    ),
    seed=2,
)
# The same texts and schedule in two other sizes: a family, for questions of scale.
STUDENT_SMALL = replace(STUDENT, name="student-small", hidden_size=64, intermediate_size=192)
STUDENT_LARGE = replace(STUDENT, name="student-large", hidden_size=160, num_layers=4, intermediate_size=480)
RECIPES = {recipe.name: recipe for recipe in (TEACHER, STUDENT, STUDENT_SMALL, STUDENT_LARGE)}

RESERVED_SEEDS = range(100_000)
"""reasoning-gym draws item i of seed s from random.Random(s + i). Pre-training avoids every question of these values
(for the task parameters of the recipe), so prompts drawn with seed + size <= 100,000 were never seen by a lab model."""


def reserved_expressions(min_terms: int, max_terms: int) -> frozenset[str]:
    """The expressions that `chain_sum` with one-digit terms gives for RESERVED_SEEDS."""
    from reasoning_gym import create_dataset

    dataset = create_dataset(
        task.TASK_NAME,
        min_terms=min_terms,
        max_terms=max_terms,
        min_digits=1,
        max_digits=1,
        seed=RESERVED_SEEDS.start,
        size=len(RESERVED_SEEDS),
    )
    return frozenset(dataset[index]["metadata"]["expression"] for index in range(len(RESERVED_SEEDS)))

"""A quick accuracy of a lab model, recorded with its digest. The pipeline's own evaluation is separate and is the one to quote."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from w2sr.grading.extract import extract_answers
from w2sr.lab import recipe as recipes
from w2sr.lab import task
from w2sr.records import seed_of, trace_id_of
from w2sr.teachers.config import HFEngineConfig, SamplingConfig
from w2sr.teachers.engine import Request
from w2sr.teachers.models import generator_spec

SAMPLING = SamplingConfig(temperature=0.6, top_p=0.95, max_new_tokens=64)
SAMPLES_PER_QUESTION = 2
BATCH_SIZE = 200
SEED = 0


def measure_accuracy(folder: Path, recipe: recipes.ModelRecipe, num_questions: int) -> dict[str, float]:
    """For each of `recipe.PROMPT_STYLES`, the share of samples (0 to 1) with the right final answer, over random questions of the recipe.

    `folder` holds the model; the product's own engine serves it on the CPU. Raises UserError when there is no such model.
    """
    from w2sr.teachers.hf_engine import HFEngine

    rng = random.Random(f"measure {SEED}")
    expressions = [task.sample_expression(rng, recipe.min_terms, recipe.max_terms) for _ in range(num_questions)]
    answers = [str(task.answer_of(expression)) for expression in expressions for _ in range(SAMPLES_PER_QUESTION)]
    shares = {}
    for prompt, style in recipes.PROMPT_STYLES.items():
        label = f"{recipe.name}-{prompt}"
        engine = HFEngine(generator_spec(label, str(folder), HFEngineConfig(), style, SAMPLING), "cpu")
        requests = _requests(label, expressions)
        completions = []
        for start in range(0, len(requests), BATCH_SIZE):
            completions += asyncio.run(engine.complete(requests[start : start + BATCH_SIZE]))
        engine.close()
        found = [extract_answers(completion.text) for completion in completions]
        num_right = sum(last is not None and last.last == answer for last, answer in zip(found, answers, strict=True))
        shares[prompt] = num_right / len(answers)
    return shares


def _requests(label: str, expressions: list[str]) -> list[Request]:
    requests: list[Request] = []
    for number, expression in enumerate(expressions):
        for sample_index in range(SAMPLES_PER_QUESTION):
            trace_id = trace_id_of(str(number), label, sample_index)
            question, seed = task.question_text(expression), seed_of(SEED, trace_id)
            requests.append(Request(trace_id, str(number), sample_index, len(requests), question, seed))
    return requests

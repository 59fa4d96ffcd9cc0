"""What each loss does against a teacher's mistakes, on the lab student: python -m benchmarks.noisy_teacher [SEEDS] [STEPS]

Traces are worked chains of sums with planted mistakes, 8 a question. Three teachers: "random": in a share of the traces one step is off by
a random amount and the rest follows from it; "systematic": whenever 8 or 9 is taken away the result is one too large, always, so that all
traces of such a question agree on the same wrong answer; "clean". The student (lab:student) is trained on them through the product's own
losses, order, schedule and averaging, with plain AdamW in one process, and answers held-out questions once, at temperature 0.6. The same
questions, rows, order and sampling seed for every loss of a seed.

Accuracy: the mean over seeds and problems, with a 95 % bootstrap interval over problems of the mean over seeds (2,000 resamples), and the
same for the difference to the NLL, paired by problem and seed. Only `verdict weights` is told which traces are wrong.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.alone import Alone, Plain
from w2sr.grading.extract import extract_answers
from w2sr.lab import task
from w2sr.lab.models import resolve_model
from w2sr.packing.rows import build_rows, model_limits
from w2sr.prompting import PromptStyle, render_prefix
from w2sr.records import Example
from w2sr.training.average import WeightAverage
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.dist import Group
from w2sr.training.engine_shards import Shard
from w2sr.training.feed import Feed
from w2sr.training.objective import Objective
from w2sr.training.schedule import learning_rate
from w2sr.training.spec import TrainSpec
from w2sr.training.weights import weigher

NUM_QUESTIONS, SAMPLES, NUM_TEST, BATCH = 64, 8, 250, 32
TERMS = (5, 7)
KINDS = ("random", "systematic", "clean")
# name, train.loss, train.optimizer.average
LOSSES: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("NLL", {}, None),
    ("verdict weights 0.2", {"verdict_weights": {"incorrect": 0.2}}, None),
    ("agreement ** 2", {"agreement_power": 2.0}, None),
    ("every trace the same", {"normalise": "traces"}, None),
    ("label smoothing 0.1", {"label_smoothing": 0.1}, None),
    ("GCE, q 0.5", {"gce_q": 0.5}, None),
    ("confidence 0.5", {"confidence": 0.5}, None),
    ("progress, beta 10", {"progress": {"beta": 10.0}}, None),
    ("KL to base 0.1", {"kl_to_base": 0.1}, None),
    ("NEFTune 5", {"neftune_alpha": 5.0}, None),
    ("weights averaged, 0.98", {}, {"decay": 0.98}),
]


class Averaged(Plain):
    """With weights that an average can be taken of."""

    def shards(self) -> list[Shard]:
        return [Shard(name, parameter.data.view(-1), 0, 1) for name, parameter in self.module.named_parameters()]

    def publish(self) -> None:
        """The shards are the weights."""


def chain(expression: str, kind: str, is_wrong: bool, rng: random.Random) -> str:
    """A worked chain with the mistakes of a teacher of this kind."""
    total, steps = task.parse_expression(expression)
    place, parts = rng.randrange(len(steps)) if is_wrong and kind == "random" else -1, []
    for number, (sign, term) in enumerate(steps):
        found = task.apply_step(total, (sign, term))
        if number == place:
            found += rng.choice([-3, -2, -1, 1, 2, 3])
        if kind == "systematic" and sign == "-" and term >= 8:
            found += 1
        parts.append(f" {total} {sign} {term} = {found}")
        total = found
    return f"So{';'.join(parts)}\n{task.final_answer(total)}"


def examples_of(kind: str, share: float, seed: int, reserved: set[str]) -> list[Example]:
    """The traces of one teacher; those of a clean one where `share` is 0."""
    rng, found = random.Random(f"{kind} {seed}"), list[Example]()
    questions: list[str] = []
    while len(questions) < NUM_QUESTIONS:
        expression = task.sample_expression(rng, *TERMS)
        if expression not in reserved:
            questions.append(expression)
    for number, expression in enumerate(questions):
        for sample in range(SAMPLES):
            text = chain(expression, kind, rng.random() < share, rng)
            answer = extract_answers(text)
            assert answer is not None
            verdict = "correct" if answer.last == str(task.answer_of(expression)) else "incorrect"
            found.append(Example(f"{number}-{sample}", str(number), task.question_text(expression), text, "planted", None, verdict))
    return found


def trained(model: Any, spec: TrainSpec, group: Group) -> Any:
    """Train as the product does, without its engine; return the model."""
    torch.manual_seed(spec.seed)
    engine: Any = Averaged(model)
    objective, feed = Objective(spec, group), Feed(spec, group, model.config)
    objective.prepare(model)
    model.train()
    average = WeightAverage(spec.train.optimizer.average, engine, feed.num_steps)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for number in range(feed.num_steps):
        step = feed.step(number)
        objective.begin_step(number, feed.num_steps)
        optimizer.zero_grad()
        for _, batch in feed.micro_batches(step):
            torch.autograd.backward(objective.loss(engine, batch).total / objective.normaliser(feed.rows, step))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate(spec.train, number, feed.num_steps)
        optimizer.step()
        average.update(number + 1)
    average.put_in_place()
    return model.eval()


def right(model: Any, tokenizer: Any, expressions: list[str], seed: int) -> np.ndarray[Any, Any]:
    """Which of these questions the model answers rightly, sampling once: [problems] of 0 and 1."""
    prefixes = [list(render_prefix(tokenizer, PromptStyle(), task.question_text(each)).ids) for each in expressions]
    width, pad = max(map(len, prefixes)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prefix)) + prefix for prefix in prefixes])
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 72, "pad_token_id": pad}
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=(ids != pad).long(), **sampling)
    found = [extract_answers(text) for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
    return np.array([each is not None and each.last == str(task.answer_of(one)) for each, one in zip(found, expressions)], dtype=float)


def interval(values: np.ndarray[Any, Any], show: Callable[[float], str]) -> str:
    """The mean of [seeds, problems] and its interval over problems."""
    rng, of_problem = np.random.default_rng(0), values.mean(0)
    drawn = rng.integers(0, len(of_problem), (2000, len(of_problem)))
    low, high = np.percentile(of_problem[drawn].mean(1), [2.5, 97.5])
    return f"{show(of_problem.mean())} [{show(low)}, {show(high)}]"


def main() -> None:
    """Print one table for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=3)
    parser.add_argument("steps", nargs="?", type=int, default=48)
    parser.add_argument("--share", type=float, default=0.5, help="of the random teacher's traces that are wrong")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--only", default="", help="losses whose name contains this, and the NLL")
    asked = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder = resolve_model("lab:student")
    tokenizer, group, began = AutoTokenizer.from_pretrained(folder), Alone(0, 1, torch.device("cpu")), time.process_time()
    rng = random.Random("noisy teacher, test")
    test = [task.sample_expression(rng, *TERMS) for _ in range(NUM_TEST)]
    base = right(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, test, 0)
    print(f"untuned student: {interval(base[None], lambda value: f'{100 * value:.1f}')}")
    for kind in asked.kinds:
        share = asked.share if kind == "random" else 0.0
        made = [examples_of(kind, share, seed, set(test)) for seed in range(asked.seeds)]
        wrong = np.mean([example.verdict == "incorrect" for examples in made for example in examples])
        print(f"\n{kind}: {100 * wrong:.0f} % of the traces are wrong\n")
        print("| loss | accuracy, % | of each seed | less NLL, points |\n|---|---:|---|---:|")
        nll = None
        for name, loss, average in LOSSES:
            if name != "NLL" and asked.only not in name:
                continue
            answers = []
            for seed, examples in enumerate(made):
                with tempfile.TemporaryDirectory() as scratch:
                    spec = spec_of(Path(scratch), folder, seed, asked, loss, average)
                    write_examples(Path(spec.rows), tokenizer, folder, examples, spec.train)
                    answers.append(right(trained(AutoModelForCausalLM.from_pretrained(folder), spec, group), tokenizer, test, seed))
            found = np.stack(answers)
            nll = found if nll is None else nll
            of_seeds = ", ".join(f"{100 * value:.0f}" for value in found.mean(1))
            less = interval(found - nll, lambda value: f"{100 * value:+.1f}") if name != "NLL" else ""
            print(f"| {name} | {interval(found, lambda value: f'{100 * value:.1f}')} | {of_seeds} | {less} |", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of one processor")


def spec_of(scratch: Path, folder: str, seed: int, asked: Any, loss: dict[str, Any], average: dict[str, Any] | None) -> TrainSpec:
    """The training of one student."""
    sizes = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "num_ranks": 1, "packing": False, "max_length": 128, "zero_stage": 0}
    rest = {"max_steps": asked.steps, "learning_rate": asked.learning_rate, "loss": loss, "optimizer": {"average": average}}
    train = TrainConfig.model_validate(sizes | rest)
    return TrainSpec("noisy", seed, train, folder, "", str(scratch / "made.rows.arrow"), str(scratch))


def write_examples(path: Path, tokenizer: Any, folder: str, examples: list[Example], train: TrainConfig) -> None:
    """Write the rows with the weights that `train.loss` gives them."""
    import dataclasses

    rows = build_rows(tokenizer, PromptStyle(), examples, train.max_length, model_limits(folder)).kept
    weigh = weigher(train.loss, lambda: examples)
    weights = {each.example_id: weigh(each) if weigh else 1.0 for each in examples}
    save_rows(path, [dataclasses.replace(row, weight=weights[row.example_id]) for row in rows])


if __name__ == "__main__":
    main()

"""What optimizers, schedules and averages do to the lab student: python -m benchmarks.optimizers [STEPS] [SEEDS] [--only NAME]

The student (lab:student, 0.4 M parameters) learns worked chains of sums of 9 to 12 terms, where it was made on sums of 5 to 7, through the
product's own loop on one rank. After each training: the NLL of held-out chains under the exported weights, in nats a token, the mean over
seeds and each of them; milliseconds a step, the median, all included; and how far a step moved the layer that moved most
(update_ratio/max, the median over measured steps). The learning rates of AdamW and Muon are compared first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from w2sr.artifacts import model_digest
from w2sr.lab import task
from w2sr.lab.models import resolve_model
from w2sr.packing.rows import build_rows, model_limits
from w2sr.prompting import PromptStyle
from w2sr.records import Example
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.loop import train
from w2sr.training.spec import TrainResult, TrainSpec

NUM_ROWS, NUM_HELD_OUT = 2048, 256
MUON = {"type": "muon", "muon_learning_rate": 0.01}
RATES: dict[str, dict[str, Any]] = {
    **{f"AdamW, {rate:g}": {"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)},
    **{
        f"Muon, {rate:g} (AdamW's half 0.001)": {
            "learning_rate": 1e-3,
            "optimizer": {**MUON, "muon_learning_rate": rate},
            "max_grad_norm": None,
        }
        for rate in (3e-3, 1e-2, 3e-2)
    },
}
BASE: dict[str, Any] = {"learning_rate": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "AdamW, cosine": {},
    "AdamW, linear": {"schedule": "linear"},
    "AdamW, constant": {"schedule": "constant"},
    "AdamW, WSD, sqrt over the last 20 %": {"schedule": "wsd", "decay_ratio": 0.2},
    "AdamW, WSD, linear over the last 20 %": {"schedule": "wsd", "decay_ratio": 0.2, "decay_shape": "linear"},
    "AdamW, constant, average 0.95": {"schedule": "constant", "optimizer": {"average": {"decay": 0.95}}},
    "AdamW, constant, mean of the last half": {"schedule": "constant", "optimizer": {"average": {"decay": 1.0, "start": 0.5}}},
    "AdamW, cosine, average 0.95": {"optimizer": {"average": {"decay": 0.95}}},
    "AdamW, cosine, weight decay 0.1": {"optimizer": {"weight_decay": 0.1}},
    "Muon, WSD, sqrt over the last 20 %": {"optimizer": MUON, "max_grad_norm": None, "schedule": "wsd", "decay_ratio": 0.2},
}


def rows_of(number: int, seed: str, folder: str, tokenizer: Any) -> list[Any]:
    """Rows of worked chains."""
    rng = random.Random(seed)
    examples = []
    for place in range(number):
        expression = task.sample_expression(rng, 9, 12)
        chain = task.worked_chain(expression)
        examples.append(Example(f"{seed}-{place}", str(place), task.question_text(expression), chain, "gold", None, None))
    return list(build_rows(tokenizer, PromptStyle(), examples, 128, model_limits(folder)).kept)


def measured(scratch: Path, name: str, seed: int, steps: int, folder: str, changes: dict[str, Any]) -> tuple[float, float, float]:
    """Train one student; return its held-out NLL, the seconds of a step and how far one moves the layers."""
    sizes = {"global_batch_size": 16, "micro_batch_size": 16, "num_ranks": 1, "packing": False, "max_length": 128, "zero_stage": 0}
    watched = {"selection": {"every": steps}, "max_steps": steps, "checkpoint_every": 10_000}
    config = TrainConfig.model_validate(sizes | watched | BASE | changes)
    output = scratch / f"{name}-{seed}"
    rows, held_out = str(scratch / "made.rows.arrow"), str(scratch / "held.rows.arrow")
    train(TrainSpec(name, seed, config, folder, model_digest(Path(folder)), rows, str(output), held_out))
    assert TrainResult.load(output) is not None
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(later["time"] - earlier["time"] for earlier, later in itertools.pairwise(log))
    ratio = statistics.median(row["update_ratio/max"] for row in log if "update_ratio/max" in row)
    return [row["selection/loss"] for row in log if "selection/loss" in row][-1], seconds, ratio


def main() -> None:
    """Print one table of learning rates and one of the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=60)
    parser.add_argument("seeds", nargs="?", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    asked = parser.parse_args()
    from transformers import AutoTokenizer

    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = resolve_model("lab:student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        save_rows(scratch / "made.rows.arrow", rows_of(NUM_ROWS, "train", folder, tokenizer))
        save_rows(scratch / "held.rows.arrow", rows_of(NUM_HELD_OUT, "held out", folder, tokenizer))
        for cases in (RATES, CASES):
            print("\n| | held-out NLL | of each seed | ms a step | update ratio |\n|---|---:|---|---:|---:|")
            for name, changes in cases.items():
                if asked.only not in name:
                    continue
                found = [measured(scratch, name, seed, asked.steps, folder, changes) for seed in range(asked.seeds)]
                losses = [loss for loss, _, _ in found]
                seconds, ratio = statistics.median(each[1] for each in found), statistics.median(each[2] for each in found)
                of_seeds = ", ".join(f"{loss:.4f}" for loss in losses)
                print(f"| {name} | {statistics.mean(losses):.4f} | {of_seeds} | {1000 * seconds:.0f} | {ratio:.1e} |", flush=True)


if __name__ == "__main__":
    main()

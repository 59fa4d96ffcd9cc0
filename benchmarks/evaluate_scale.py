"""Time and memory of everything the report computes from evaluation samples: python -m benchmarks.evaluate_scale [SHAPE ...]

A shape is MODELSxPROBLEMSxSAMPLES. Invented answers in the real file layout (parts of 16,384 rows with texts, verdicts.parquet),
difficulties and subjects in the metadata. What is timed is `comparisons` and `sections`, the code of the report: all figures with
intervals, strata, budgets, paired tests, tables. Every shape in a process of its own; "before" is its memory after its imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.report_fake import config_of, finish_stage
from w2sr.config import dump_config
from w2sr.records import Prompt, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.tables import schema_of
from w2sr.traces.parts import GROUP_ROWS, PART_ROWS
from w2sr.traces.shards import parquet_writer

SHAPES = ["12x20833x4", "1x250000x4", "1x500x2000", "8x500x250"]
ARMS = ["all", "correct", "incorrect"]
WORDS = ["so", "then", "the", "number", "of", "apples", "is", "now", "we", "add", "each", "day", "half", "total", "cost", "and", "wait"]
SUBJECTS = ["Algebra", "Geometry", "Number theory", "Counting", "Precalculus"]


def run_of(folder: Path, models: int, samples: int) -> Run:
    """The run that has `models` contestants: the base, and, from two on, a teacher and students of three arms."""
    seeds = list(range((models - 2) // len(ARMS)))
    more = [{"name": f"more{number}", "model": "lab:teacher"} for number in range(models - 2 - len(seeds) * len(ARMS))]
    config = config_of(
        folder,
        student={"model": "lab:student", "reasoning_style": None},
        curate={"arms": ARMS if seeds else ["all"]},
        train={"seeds": seeds or [0]},
        teachers=[{"name": "weak", "model": "lab:teacher", "sampling": {"max_new_tokens": 4096}}],
        evaluate={
            "samples_per_prompt": samples,
            "pass_k": [k for k in (1, 4, 8, 64) if k <= samples],
            "sampling": {"max_new_tokens": 4096},
            "models": more if models > 2 else [],
            "bootstrap_samples": 2000,
            "ceiling": "correct" if seeds else "all",
        },
    )
    return Run(config, folder, contextlib.nullcontext)


def labels_of(run: Run, models: int) -> list[str]:
    """The first `models` contestants."""
    from w2sr.evaluation.contestants import contestants_of

    return [contestant.label for contestant in contestants_of(run)][:models]


def write_run(folder: Path, models: int, problems: int, samples: int) -> None:
    """Write the prompts and the answers of every model."""
    run = run_of(folder, models, samples)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(run.config))
    metadata = [json.dumps({"difficulty": 1 + n % 5, "subject": SUBJECTS[n % 7 % 5]}) for n in range(problems)]
    prompts = [Prompt(f"p{n:07d}", "test", f"What is {n} + 1?", "7", None, "fake", metadata[n]) for n in range(problems)]
    finish_stage(run, "prompts", {"test.parquet": (prompts, Prompt)}, {"test": problems})
    for number, label in enumerate(labels_of(run, models)):
        stage = f"evaluate/test/{label}"
        finish_stage(run, stage, {}, {"prompts": problems}, {}, {"model": "0" * 64})
        _write_answers(run.folder / stage, label, problems, samples, np.random.default_rng(number))


def _write_answers(folder: Path, label: str, problems: int, samples: int, rng: np.random.Generator) -> None:
    chance = np.random.default_rng(0).beta(0.6, 0.8, size=problems)
    with contextlib.ExitStack() as stack:
        verdicts = stack.enter_context(pq.ParquetWriter(folder / "verdicts.parquet", schema_of(Verification), write_page_checksum=True))
        for part, start in enumerate(range(0, problems * samples, PART_ROWS)):
            position = np.arange(start, min(problems * samples, start + PART_ROWS))
            traces, judged = _rows(label, position, samples, chance[position // samples], rng)
            with parquet_writer(folder / f"part-{part:05d}.parquet", schema_of(Trace)) as writer:
                writer.write_table(traces, row_group_size=GROUP_ROWS)
            verdicts.write_table(judged)


def _rows(label: str, position: Any, samples: int, chance: Any, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """2 % are cut, 0.1 % failed; wrong answers are near the right one, so that some are frequent."""
    size = len(position)
    finish = rng.choice(["stop", "length", "error"], size=size, p=[0.979, 0.02, 0.001])
    right = (rng.random(size) < chance) & (finish == "stop")
    prompt_ids = [f"p{number:07d}" for number in (position // samples).tolist()]
    sample = position % samples
    ids = [trace_id_of(prompt_id, label, number) for prompt_id, number in zip(prompt_ids, sample.tolist())]
    words = rng.integers(len(WORDS), size=(size, 40))
    texts = [" ".join(WORDS[word] for word in row) for row in words.tolist()]
    tokens = np.minimum(rng.lognormal(5.5, 0.8, size=size).astype(np.int64) + 1, 4096)
    constant = {
        "generator": label,
        "num_prompt_tokens": 20,
        "template_hash": "t",
        "model_digest": "d",
        "engine": "hf",
        "engine_version": "5",
        "model": "",
    }
    columns = {
        "trace_id": ids,
        "prompt_id": prompt_ids,
        "sample_index": sample,
        "text": texts,
        "finish_reason": finish,
        "num_tokens": tokens,
    }
    columns |= {name: [value] * size for name, value in constant.items()}
    columns |= {"seed": position, "error": np.where(finish == "error", "gone", None), "position": position, "token_ids": [None] * size}
    answers = np.where(right, "7", (7 + rng.geometric(0.2, size=size)).astype(str))
    answers = np.where(finish == "length", None, answers)
    verdict = np.where(right, "correct", np.where(finish == "length", "unverifiable", "incorrect"))
    kept = np.flatnonzero(finish != "error")
    judged = {"trace_id": ids, "prompt_id": prompt_ids, "verdict": verdict, "reason": ["match"] * size, "first_answer": answers}
    judged |= {"last_answer": answers, "first_verdict": verdict, "first_reason": ["match"] * size, "method": ["reference"] * size}
    judged |= {"agreement": [None] * size, "position": position}
    return _table(columns, schema_of(Trace)), _table(judged, schema_of(Verification)).take(pa.array(kept))


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([pa.array(list(columns[field.name]), field.type) for field in schema], schema=schema)


def measure(folder: Path, models: int, problems: int, samples: int) -> None:
    """Compute and print one line of the table."""
    import scipy.fft
    import scipy.stats  # noqa: F401 - loading libraries is not what is measured
    import statsmodels.stats.multitest  # noqa: F401

    from w2sr.evaluation import contestants
    from w2sr.reporting import measured
    from w2sr.reporting.benchmarks import sections
    from w2sr.reporting.compare import comparisons

    run = run_of(folder, models, samples)
    everyone = contestants.contestants_of(run)[:models]
    measured.contestants_of = lambda _: everyone  # type: ignore[assignment] # fewer models than the smallest run has
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    found = comparisons(run)
    parts = sections(run, found)
    wall, used = time.monotonic() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    estimates = sum(len(row.figures) + len(row.versus) for row in found[0].rows) + sum(
        len(each.avg) for kind in found[0].strata.values() for each in kind
    )
    rows = sum(len(table.rows) for part in parts for _, table in part.tables)
    shape = f"{models} × {problems:,} × {samples:,}"
    print(
        f"| {shape} | {models * problems * samples:,} | {wall:.1f} | {used:.1f} | {before // 1024} | {peak // 1024} | "
        f"{estimates} | {len(found[0].tests)} | {rows} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--scratch", type=Path, help="where the run folders are written and kept (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    if arguments.measure:
        measure(arguments.measure, *shapes[0])
        return
    print("| models × problems × samples | samples in all | wall s | CPU s | MiB before | peak MiB | intervals | tests | table rows |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for text, shape in zip(arguments.shapes, shapes):
            folder = (arguments.scratch or Path(scratch)) / text
            if not folder.exists():
                write_run(folder, *shape)
            subprocess.run([sys.executable, __file__, text, "--measure", str(folder)], check=True)


if __name__ == "__main__":
    main()

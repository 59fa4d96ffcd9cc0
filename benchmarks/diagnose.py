"""CPU time and memory of `w2sr diagnose` over two teachers: python -m benchmarks.diagnose [TRACES_OF_EACH ...]

Invented run folders; every figure is of a process of its own. The texts are all different, as long as real ones (about 60 words).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from tests.unit.report_fake import config_of, finish_stage
from w2sr.config import dump_config
from w2sr.records import Prompt, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.tables import write_table

SAMPLES = 4
PART_ROWS = 16_384
WORDS = ["so", "then", "the", "number", "of", "apples", "is", "now", "we", "add", "each", "day", "half", "total", "cost", "and", "twice"]


def write_run(folder: Path, num_traces: int) -> None:
    """Write a run of two verified teachers with `num_traces` each."""
    num_prompts = num_traces // SAMPLES
    teachers = [{"name": name, "model": "lab:teacher", "sampling": {"max_new_tokens": 64}, "samples_per_prompt": SAMPLES} for name in "ab"]
    run = Run(config=config_of(folder, teachers=teachers), folder=folder, ray=nullcontext)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(run.config))
    prompts = [Prompt(f"p{number:08d}", "train", f"What is {number} + 1?", "7", None, "fake", "{}") for number in range(num_prompts)]
    finish_stage(run, "prompts", {"train.parquet": (prompts, Prompt)}, {})
    for name in "ab":
        rng = np.random.default_rng(ord(name))
        finish_stage(run, f"generate/{name}", {}, {})
        finish_stage(run, f"verify/{name}", {}, {})
        for part, start in enumerate(range(0, num_traces, PART_ROWS)):
            rows = [_trace(name, position, rng) for position in range(start, min(num_traces, start + PART_ROWS))]
            write_table(run.stage("generate", name) / f"part-{part:05d}.parquet", rows, Trace)
            verdicts = [
                Verification(
                    row.trace_id, row.prompt_id, "correct" if row.seed % 2 else "incorrect", "match", "7", "7", position=row.position
                )
                for row in rows
            ]
            write_table(run.stage("verify", name) / f"part-{part:05d}.parquet", verdicts, Verification)


def _trace(name: str, position: int, rng: np.random.Generator) -> Trace:
    prompt_id = f"p{position // SAMPLES:08d}"
    words = [WORDS[number] for number in rng.integers(len(WORDS), size=50)]
    text = f"{' '.join(words)} {position} + 1 = {position + 1}\n#### {position // SAMPLES % 7}"
    trace_id = trace_id_of(prompt_id, name, position % SAMPLES)
    return Trace(trace_id, prompt_id, name, position % SAMPLES, text, "stop", 9, 60, position, "t", "d", "hf", None, position)


def measure(folder: Path) -> None:
    """Diagnose and print seconds of CPU time and the peak of memory, in MiB, above what importing took."""
    from w2sr.diagnosis.diagnose import diagnose

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = diagnose(folder)
    seconds = time.process_time() - began
    traces = sum(teacher.traces for teacher in found.teachers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| {traces:,} | {seconds:.1f} | {1e6 * seconds / traces:.0f} | {(peak - before) / 1024:.0f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, default=[5_000, 50_000, 150_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print("| traces | CPU s | microseconds a trace | MiB above the imports |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in arguments.numbers:
            write_run(Path(folder) / str(number), number)
            subprocess.run([sys.executable, __file__, "--measure", str(Path(folder) / str(number))], check=True)


if __name__ == "__main__":
    main()

"""Packing and tokenising at scale, on the lengths and texts of real traces.

    .venv/bin/python -m benchmarks.packing fill TRACES.json [--rows 1000000] [--trl .venv-trl/bin/python]
    .venv/bin/python -m benchmarks.packing made-up [--rows 1000000]
    .venv/bin/python -m benchmarks.packing tokenise TRACES.json 10000 100000 [--workers 1]

TRACES.json: a list of {content, output}, such as gsm8k_gemma_2b_weak.json of GAIR-NLP/weak-to-strong-reasoning. The tokenizer is that of
SmolLM2-135M (`python -m tests.smollm2` fetches it). `fill` draws lengths from those of the traces, with replacement, and packs all of
them at once; if --trl names an interpreter that has it, so does TRL ("bfd", the default of its SFTTrainer), in its batches of 1,000 and
all at once. `made-up` packs log-normal lengths, longer and more various than these. `tokenise` measures each number of traces in a
process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.smollm2 import default_folder
from w2sr.packing.fit import fill_bins
from w2sr.prompting import PromptStyle
from w2sr.records import Example
from w2sr.training.data import ROWS, is_sound, load_rows
from w2sr.training.order import Course
from w2sr.training.tokenise import Recipe, tokenise

CAPACITIES = (1024, 2048, 4096, 16384)
MADE_UP = ((4096, 6.2, 0.8), (32768, 8.5, 1.0), (131072, 9.5, 1.2))  # longest, and mean and deviation of the logarithm
IN_TRL = """
import sys, time
import numpy as np, pyarrow as pa
from datasets import Dataset, disable_caching, disable_progress_bars
from trl import pack_dataset
disable_caching(); disable_progress_bars()
lengths = np.load(sys.argv[1])
offsets = np.concatenate([[0], np.cumsum(lengths)])
ids = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.ones(offsets[-1], dtype=np.int32)))
rows = Dataset(pa.table({"input_ids": ids}))
for capacity in map(int, sys.argv[2:]):
    for size in (1000, len(lengths)):
        began, cpu = time.monotonic(), time.process_time()
        packed = pack_dataset(rows, capacity, "bfd", map_kwargs={"batch_size": size})
        name = "trl" if size > 1000 else "trl in batches of 1,000"
        print(name, capacity, len(packed), time.process_time() - cpu, time.monotonic() - began, sep=";", flush=True)
"""


def examples_of(path: Path, number: int) -> Iterator[Example]:
    """Yield `number` examples from the traces, over and over, each with a text of its own."""
    traces = json.loads(path.read_text(encoding="utf-8"))
    for place, trace in zip(range(number), itertools.cycle(traces)):
        question = trace["content"].removeprefix("Question: ").removesuffix("\nAnswer:")
        again = "" if place < len(traces) else f" ({place})"
        yield Example(f"e{place}", f"p{place}", question + again, trace["output"] + again, "gemma-2b", None, None)


def recipe(max_length: int) -> Recipe:
    """Return how the traces become rows."""
    return Recipe(str(default_folder()), PromptStyle(), max_length)


def fill(arguments: argparse.Namespace) -> None:
    """Print sequences, fill and seconds of best-fit for each capacity, and TRL's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ROWS}"
        tokenise(path, recipe(2048), examples_of(arguments.traces, 7000), None, 1, lambda _: None)
        found = load_rows(path).lengths
        quantiles = [int(np.quantile(found, share)) for share in (0.05, 0.5, 0.95, 1)]
        print(f"lengths of {len(found)} rows, 5 %, 50 %, 95 %, most: {quantiles}; mean {found.mean():.0f}")
        drawn = np.random.default_rng(0).choice(found[found <= CAPACITIES[0]], arguments.rows)
        for capacity in CAPACITIES:
            began, cpu = time.monotonic(), time.process_time()
            bins = fill_bins(drawn, capacity)
            seconds = time.process_time() - cpu, time.monotonic() - began
            show("w2sr", drawn, capacity, len(bins), *seconds)
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        if arguments.trl is not None:
            np.save(Path(folder) / "lengths.npy", drawn)
            command = [arguments.trl, "-c", IN_TRL, str(Path(folder) / "lengths.npy"), *map(str, CAPACITIES[:3:2])]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for line in output.splitlines():
                name, capacity, number, cpu_s, wall_s = line.split(";")
                show(name, drawn, int(capacity), int(number), float(cpu_s), float(wall_s))


def made_up(arguments: argparse.Namespace) -> None:
    """Print sequences, fill and seconds for log-normal lengths."""
    rng = np.random.default_rng(0)
    for capacity, mean, deviation in MADE_UP:
        drawn = np.clip(rng.lognormal(mean, deviation, arguments.rows).astype(np.int64), 1, capacity)
        began, cpu = time.monotonic(), time.process_time()
        bins = fill_bins(drawn, capacity)
        show(f"mean {drawn.mean():,.0f}:", drawn, capacity, len(bins), time.process_time() - cpu, time.monotonic() - began)


def show(who: str, lengths: Any, capacity: int, number: int, cpu_s: float, wall_s: float) -> None:
    """Print one line of the table."""
    share = lengths.sum() / (number * capacity)
    print(
        f"{who:4} {len(lengths):>9,} rows into {capacity:>6,}: {number:>8,} sequences, {share:.3%} full, {cpu_s:.1f} s CPU, {wall_s:.1f} s",
        flush=True,
    )


def tokenised(arguments: argparse.Namespace) -> None:
    """Tokenise so many traces in this process, or in one of its own for each of several numbers."""
    if len(arguments.numbers) > 1:
        for number in arguments.numbers:
            command = [sys.executable, __file__, "tokenise", str(arguments.traces), str(number), "--workers", str(arguments.workers)]
            subprocess.run(command, check=True)
        return
    (number,) = arguments.numbers
    recipe(1024).gate()  # imports torch and transformers, and loads the tokenizer: seconds that belong to no trace
    with tempfile.TemporaryDirectory() as folder:
        path, began, cpu = Path(folder) / f"a{ROWS}", time.monotonic(), os.times()
        facts = tokenise(path, recipe(1024), examples_of(arguments.traces, number), None, arguments.workers, lambda _: None)
        used = os.times()
        wall_s, cpu_s = time.monotonic() - began, sum(used[:4]) - sum(cpu[:4])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{number:>9,} traces: {facts.num_rows:,} rows of {facts.num_tokens:,} tokens in {wall_s:.1f} s ({cpu_s:.1f} s CPU, "
            f"{1e6 * cpu_s / number:.0f} us a trace), {path.stat().st_size / 2**20:.0f} MiB, peak memory {peak:.0f} MiB",
            flush=True,
        )
        reading(path)


def reading(path: Path) -> None:
    """Print what checking, mapping and packing the file cost."""
    from w2sr.training.config import TrainConfig

    began = time.monotonic()
    assert is_sound(path)
    checked = time.monotonic()
    store = load_rows(path)
    mapped = time.monotonic()
    config = TrainConfig(epochs=1, num_ranks=1, max_length=1024)
    course = Course(store.lengths, store.parts, config, seed=0)
    course.step(0)
    print(
        f"          checked in {checked - began:.2f} s, mapped in {mapped - checked:.2f} s, first step known "
        f"{time.monotonic() - mapped:.2f} s later; {course.fill():.2%} full",
        flush=True,
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("fill", fill), ("made-up", made_up), ("tokenise", tokenised)):
        command = commands.add_parser(name)
        if name != "made-up":
            command.add_argument("traces", type=Path)
        command.set_defaults(function=function)
    for name in ("fill", "made-up"):
        commands.choices[name].add_argument("--rows", type=int, default=1_000_000)
    commands.choices["fill"].add_argument("--trl")
    commands.choices["tokenise"].add_argument("numbers", type=int, nargs="+")
    commands.choices["tokenise"].add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()

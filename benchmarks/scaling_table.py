"""Writes the table of docs/scaling.md: what `w2sr plan` chooses for students of 7B to 70B parameters on 8 to 512 GPUs of 80 GB.

    python -m benchmarks.scaling_table            # prints the table
    python -m benchmarks.scaling_table --write    # puts it into docs/scaling.md

Nothing runs on a GPU: it is the planner's arithmetic, on shapes written below as the models' config.json have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.meta_70b import LLAMA_70B
from w2sr.planning.assumptions import GIB, Assumptions
from w2sr.planning.search import Option, fastest
from w2sr.planning.shapes import shape_from
from w2sr.planning.speed import Speed
from w2sr.training.config import TrainConfig

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- made by benchmarks/scaling_table.py -->", "<!-- end -->"
LENGTH, STEP_TOKENS, TOKENS = 8192, 4_194_304, 1e10
RANKS = (8, 64, 512)
ASKED: dict[str, Any] = {
    "use_gpu": True,
    "precision": "bf16",
    "max_steps": 1,
    "max_length": LENGTH,
    "global_batch_tokens": STEP_TOKENS,
    "micro_batch_size": 1,
    "memory": {"nvme_path": "/nvme"},
}
QWEN2 = {"model_type": "qwen2", "vocab_size": 152_064, "tie_word_embeddings": False}


def qwen(hidden: int, inner: int, layers: int, heads: int, keys: int) -> dict[str, Any]:
    """Return the part of a Qwen2.5's config.json that decides its shape."""
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**QWEN2, **sizes, "num_attention_heads": heads, "num_key_value_heads": keys}


STUDENTS: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B": qwen(3584, 18_944, 28, 28, 4),
    "Qwen2.5-14B": qwen(5120, 13_824, 48, 40, 8),
    "Qwen2.5-32B": qwen(5120, 27_648, 64, 40, 8),
    "Llama-3-70B": {"model_type": "llama", **LLAMA_70B},
}


def table() -> str:
    """Return the table, as Markdown."""
    heads = ["student", "GPUs", "ZeRO", "offload", "recompute", "micro-batch", "GiB of 79", "host GiB a GPU", "tokens/s a GPU", "MFU"]
    heads.append("days for 10 B tokens")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, values in STUDENTS.items():
        shape = shape_from(name, values)
        for ranks in RANKS:
            lines.append(row(name, ranks, fastest(shape, TrainConfig(num_ranks=ranks, **ASKED), Assumptions(), STEP_TOKENS)))
    return "\n".join(lines)


def row(name: str, ranks: int, found: tuple[Option, Speed] | None) -> str:
    """Return one line of the table."""
    if found is None:
        return f"| {name} | {ranks} | nothing fits | | | | | | | | |"
    option, speed = found
    layout, memory = option.layout, option.memory
    parts = {"optimizer": layout.offload_optimizer, "parameters": layout.offload_parameters}
    offload = ", ".join(f"{what}: {place}" for what, place in parts.items() if place != "device") or "no"
    days = TOKENS / (speed.tokens_per_s * ranks) / 86_400
    cells = [
        name,
        str(ranks),
        str(layout.zero_stage),
        offload,
        "yes" if layout.recompute else "no",
        f"{layout.micro_rows} x {layout.length:,}",
        f"{memory.needs / GIB:.0f}",
        f"{memory.host / GIB:.0f}" if memory.host else "0",
        f"{speed.tokens_per_s:,.0f}",
        f"{speed.mfu or 0:.0%}",
        f"{days:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(text: str, made: str) -> str:
    """Return a document's text with its table replaced."""
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), table()), encoding="utf-8")
    else:
        print(table())

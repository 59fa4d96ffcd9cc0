"""How long a training stands still for a checkpoint: written in place, and beside the steps.

python -m benchmarks.checkpoint_stall FOLDER     (about 6 minutes on 2 cores, 5 GB of disk, 8 GB of memory)

A Llama of 110 M parameters, two ranks of one core, ZeRO 2, fp32: 1.8 GB a checkpoint. The stall is checkpoint_stall_s of metrics.jsonl:
what a step waits for the checkpoint before it. The time around the steps shows what writing beside them takes away from them.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.distributed.ranks import environment
from w2sr.artifacts import model_digest
from w2sr.packing.rows import Row
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.spec import TrainSpec

NUM_STEPS, EVERY = 16, 4


def make_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import make_tiny_tokenizer

    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 32000}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0)).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)


def make_spec(folder: Path, name: str, asynchronous: bool) -> TrainSpec:
    rng = random.Random(0)
    save_rows(folder / "rows.safetensors", [Row(f"e{n}", "p", tuple(rng.randint(7, 90) for _ in range(128)), 8) for n in range(64)])
    train = TrainConfig.model_validate(
        {
            "num_ranks": 2,
            "max_steps": NUM_STEPS,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "packing": False,
            "max_length": 128,
            "checkpoint_every": EVERY,
            "asynchronous_checkpoints": asynchronous,
        }
    )
    paths = str(folder / "model"), model_digest(folder / "model"), str(folder / "rows.safetensors"), str(folder / name)
    return TrainSpec(name, 0, train, *paths)


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    make_model(folder / "model")
    print("| checkpoints | stall of each (s) | seconds a step, median | first step to last (s) |\n|---|---|---|---|", flush=True)
    for name, asynchronous in (
        ("in place", False),
        ("beside the steps", True),
        ("in place again", False),
        ("beside the steps again", True),
    ):
        spec = make_spec(folder, name.replace(" ", "-"), asynchronous)
        path = folder / "spec.json"
        path.write_text(spec.to_json())
        command = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        subprocess.run(
            [sys.executable, "-m", *command, "-m", "w2sr.training", str(path)], env=environment(), check=True, capture_output=True
        )
        rows = [json.loads(line) for line in (Path(spec.output) / "metrics.jsonl").read_text().splitlines()]
        stalls = [row["checkpoint_stall_s"] for row in rows if "checkpoint_stall_s" in row]
        steps = sorted(512 / row["tokens_per_s"] for row in rows)
        wall = rows[-1]["time"] - rows[0]["time"]
        shown = ", ".join(f"{stall:.2f}" for stall in stalls)
        print(f"| {name} | {shown} | {steps[len(steps) // 2]:.2f} | {wall:.1f} |", flush=True)
        shutil.rmtree(spec.output)
        time.sleep(5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Peak memory that `w2sr plan` predicts against the peak resident memory of real ranks on CPUs, as train/<student>/plan.json has both.

    python -m benchmarks.plan_vs_actual

A random Llama of 30 M parameters, packed sequences of 1,024 tokens, micro-batches of 4,096, two steps; each case in processes of its own.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import make_tiny_tokenizer
from w2sr.artifacts import model_digest
from w2sr.packing.rows import Row
from w2sr.planning.actual import FILE, record
from w2sr.planning.assumptions import CPU_CONTEXT_GIB, GIB
from w2sr.selftest.groups import run_ranks
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.spec import TrainResult, TrainSpec

CASES: dict[str, dict[str, Any]] = {
    "ZeRO 0, 1 rank": {"num_ranks": 1, "zero_stage": 0},
    "ZeRO 0, 1 rank, recompute": {"num_ranks": 1, "zero_stage": 0, "gradient_checkpointing": True},
    "ZeRO 2, 2 ranks, recompute": {"num_ranks": 2, "zero_stage": 2, "gradient_checkpointing": True},
    "ZeRO 3, 2 ranks, recompute": {"num_ranks": 2, "zero_stage": 3, "gradient_checkpointing": True},
    "ZeRO 2, 2 ranks, recompute, bf16": {"num_ranks": 2, "zero_stage": 2, "gradient_checkpointing": True, "precision": "bf16"},
}
VALUES = {"max_steps": 2, "global_batch_size": 8, "micro_batch_size": 4, "max_length": 1024, "packing": True}


def make_model(folder: Path) -> None:
    """Write a random Llama of 30 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)


def main() -> None:
    """Run every case and print one line each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        rng = np.random.default_rng(0)
        rows = [Row(f"e{n}", "p", tuple(int(token) for token in rng.integers(3, 8000, 256)), 8) for n in range(64)]
        save_rows(folder / "some.rows.arrow", rows)
        print("| case | predicted GiB | peak resident GiB | predicted / actual | without libraries |\n|---|---|---|---|---|")
        for number, (case, changes) in enumerate(CASES.items()):
            train = TrainConfig.model_validate(VALUES | changes)
            output = folder / f"student{number}"
            rows_path = str(folder / "some.rows.arrow")
            spec = TrainSpec(output.name, 0, train, str(folder / "model"), model_digest(folder / "model"), rows_path, str(output))
            asked = folder / f"asked{number}.json"
            asked.write_text(json.dumps({"layouts": [], "trainings": [spec.to_json()]}))
            run_ranks(asked, train.num_ranks, 1, folder / f"log{number}", 1800)
            result = TrainResult.load(output)
            assert result is not None
            record(spec, result)
            values = json.loads((output / FILE).read_text())
            predicted, actual = (values[side]["memory_bytes"] / GIB for side in ("predicted", "actual"))
            own = (predicted - CPU_CONTEXT_GIB) / (actual - CPU_CONTEXT_GIB)
            print(f"| {case} | {predicted:.2f} | {actual:.2f} | {predicted / actual:.2f} | {own:.2f} |", flush=True)


if __name__ == "__main__":
    main()

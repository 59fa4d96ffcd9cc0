"""A 70 B student under ZeRO-3 without 70 B weights: export plan on meta tensors, and the sharded loading of one rank of many.

    python -m benchmarks.meta_70b [--ranks 512] [--layers 80] [--values]

The process is rank 0 of `--ranks`; torch's fake process group answers for the others. DeepSpeed makes and shards every parameter as in a
training, and the shards of this rank are real. The files are not there: with --values a stand-in gives the value of every weight, which
then passes through memory (141 GB of it); without, the order of reading is checked and no weight is gathered.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

LLAMA_70B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
QWEN_72B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Loaded:
    """What rank 0 did: parameters of the model, bytes of its own shards, of the largest parameter, and how the peak of memory rose."""

    num_parameters: int
    shard_bytes: int
    largest_bytes: int
    peak_bytes: int
    seconds: float
    names: frozenset[str]


@contextmanager
def one_rank_of(num_ranks: int) -> Iterator[None]:
    """Let this process be rank 0 of `num_ranks` inside; nobody else is there, and what others would send is not defined."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from w2sr.training.engine import import_deepspeed

    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(num_ranks)})
    deepspeed = import_deepspeed(on_gpu=False)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)  # type: ignore[no-untyped-call]
    deepspeed.init_distributed(dist_backend="gloo", verbose=False, dist_init_required=False)
    try:
        yield
    finally:
        dist.destroy_process_group()


def load_one_rank(model_config: Any, num_ranks: int, values: bool) -> Loaded:
    """Load the shards of rank 0 of `num_ranks` in bf16, as a training would; with `values`, gather and fill each parameter."""
    import torch

    from w2sr.training import engine_loading
    from w2sr.training.config import TrainConfig
    from w2sr.training.deepspeed_dict import deepspeed_config

    train = TrainConfig(max_steps=1, zero_stage=3, precision="bf16", num_ranks=num_ranks, global_batch_size=num_ranks, micro_batch_size=1)
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in engine_loading.empty_model(model_config, torch.bfloat16).named_parameters()}
    tensors = {name: (Path(name), shape) for name, shape in shapes.items()}
    reads: list[str] = []

    def read(_: Path, name: str) -> torch.Tensor:
        reads.append(name)
        return torch.ones(()).expand(shapes[name]) if values else torch.empty(0)

    before, began = peak_bytes(), time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(patch.object(engine_loading, "read_tensor", read))
        if not values:
            stack.enter_context(patch.object(engine_loading, "gathered", lambda *_, **__: nullcontext()))
        model = engine_loading.load_sharded(model_config, torch.bfloat16, deepspeed_config(train, num_ranks, on_gpu=False), tensors)
    parameters = dict(model.named_parameters())
    assert sorted(reads) == sorted(shapes)
    assert {name: tuple(one.ds_shape) for name, one in parameters.items()} == shapes
    if values:
        assert all(bool((one.ds_tensor == 1).all()) for one in parameters.values()), "a shard was not filled"
    return Loaded(
        sum(one.ds_numel for one in parameters.values()),
        sum(one.ds_tensor.nbytes for one in parameters.values()),
        max(one.ds_numel for one in parameters.values()) * 2,
        peak_bytes() - before,
        time.monotonic() - began,
        frozenset(parameters),
    )


def peak_bytes() -> int:
    """Return the most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    from transformers import LlamaConfig, Qwen2Config

    from w2sr.training.export_plan import export_plan

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--values", action="store_true")
    arguments = parser.parse_args()
    shapes = {"Llama-3-70B": LlamaConfig(**LLAMA_70B), "Qwen2.5-72B": Qwen2Config(**QWEN_72B)}
    print("| shape | export | files | bytes | largest file | peak memory | s |\n|---|---|---|---|---|---|---|")
    for name, config in shapes.items():
        config.num_hidden_layers = arguments.layers
        for precision in ("bf16", "fp32"):
            before, began = peak_bytes(), time.monotonic()
            plan = export_plan(config, precision, 5 * 10**9)
            row = (len(plan.files), f"{plan.total_bytes / 1e9:.1f} GB", f"{plan.largest_file_bytes / 1e9:.2f} GB")
            risen = f"+{(peak_bytes() - before) / 1e6:.0f} MB"
            print("| " + " | ".join(map(str, (name, precision, *row, risen, f"{time.monotonic() - began:.1f}"))) + " |")
    print(f"\nRank 0 of {arguments.ranks}, ZeRO-3, bf16:\n\n| shape | parameters | its shards | largest parameter | peak memory | s |")
    print("|---|---|---|---|---|---|")
    with one_rank_of(arguments.ranks):
        for name, config in shapes.items():
            done = load_one_rank(config, arguments.ranks, arguments.values)
            assert done.names == set(export_plan(config, "bf16", 5 * 10**9).size_bytes)
            sizes = [f"{size / 1e6:.0f} MB" for size in (done.shard_bytes, done.largest_bytes)]
            row = (name, f"{done.num_parameters / 1e9:.2f} B", *sizes, f"+{done.peak_bytes / 1e6:.0f} MB", f"{done.seconds:.0f}")
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()

"""Peak memory of the ranks while a student is loaded under ZeRO-3 and exported from its shards.

    python -m benchmarks.sharded_memory [--ranks 2] [--layers 12] [--hidden 1024] [--transformers]

Makes a random Llama, starts the ranks (gloo, CPU) and prints for each how far its resident memory rose above what it had before: while
loading, and while exporting in files of 100 MB with the proof. --transformers loads through transformers' own DeepSpeed integration.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VOCABULARY = 16_000
MEBI = 1 << 20


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """Write a random model in files of 100 MB, with a tokenizer of characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import make_tiny_tokenizer

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100MB")
    make_tiny_tokenizer().save_pretrained(folder)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def rise() -> Iterator[list[int]]:
    """Yield a list whose first element is, after the end, how far resident memory rose inside, in bytes."""
    before, peak, over = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.003):
            peak[0] = max(peak[0], resident_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def rank(folder: Path, by_transformers: bool) -> None:
    """What each rank does."""
    import numpy as np
    import transformers.models.llama.modeling_llama  # noqa: F401

    from w2sr.training import engine, engine_loading
    from w2sr.training.config import TrainConfig
    from w2sr.training.deepspeed_dict import deepspeed_config
    from w2sr.training.dist import join_group, leave_group
    from w2sr.training.export import export

    group = join_group(use_gpu=False)
    engine.import_deepspeed(on_gpu=False).init_distributed(dist_backend="gloo", verbose=False)
    if by_transformers:
        from transformers import AutoConfig

        def load(path: str, precision: str, config: dict[str, object], half_on_gpu: bool) -> object:  # noqa: ARG001
            dtype = engine_loading.torch_dtype(precision)
            return engine_loading._load_by_transformers(path, AutoConfig.from_pretrained(path), dtype, config)

        engine.load_model = load
    warm = TrainConfig(max_steps=1, zero_stage=3, num_ranks=group.world_size)
    tiny = str(folder.with_name("tiny"))
    engine.load_model(tiny, "fp32", deepspeed_config(warm, group.world_size, on_gpu=False), False)  # modules are loaded by the first
    real, found = engine.load_model, {}

    def measured(*arguments: object, **options: object) -> object:
        began = time.monotonic()
        with rise() as peak:
            model = real(*arguments, **options)
        found["loading"] = (peak[0], time.monotonic() - began)
        return model

    engine.load_model = measured
    train = TrainConfig.model_validate(
        {"max_steps": 1, "zero_stage": 3, "num_ranks": group.world_size, "max_length": 512, "export": {"shard_size_gb": 0.1}}
    )
    live = engine.Engine(train, str(folder), group, lambda _: None)
    size = sum(parameter.ds_numel * 4 for parameter in live.module.parameters())
    began = time.monotonic()
    with rise() as peak:
        export(live, group, str(folder), folder.with_name("exported"), np.arange(64)[None])
    found["export"] = (peak[0], time.monotonic() - began)
    for place in range(group.world_size):
        if place == group.rank:
            loading, exporting = (f"+{bytes_ // MEBI} MiB, {seconds:.1f} s" for bytes_, seconds in (found["loading"], found["export"]))
            print(f"| {group.rank} of {group.world_size} | {size // MEBI} MiB | {loading} | {exporting} |", flush=True)
        group.barrier()
    leave_group()


def main() -> None:
    from tests.tiny import make_tiny_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        rank(Path(arguments.folder), arguments.transformers)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_model(folder, arguments.layers, arguments.hidden)
        make_tiny_model(folder.with_name("tiny"))
        print("| rank | whole model | loading | export and proof |\n|---|---|---|---|", flush=True)
        ranks = ["-m", "torch.distributed.run", "--nproc-per-node", str(arguments.ranks), "-m", "benchmarks.sharded_memory"]
        options = ["--folder", str(folder), *(["--transformers"] if arguments.transformers else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, *ranks, *options], env=environment, check=True)


if __name__ == "__main__":
    main()

"""Memory and time of the loss from hidden states: python benchmarks/fused_loss.py [TOKENS] [REPEATS]

The head of a model (a linear layer without bias) and the mean NLL of TOKENS supervised tokens, forward and backward to the gradients of
hidden states and weight: through whole logits (torch's linear and cross_entropy, as transformers does it: logits to fp32, then the loss),
through torch.utils.checkpoint over chunks of 2^24 logits, recomputed in the backward pass, and through fused.fused_loss with chunks of
several sizes. Each in a process of its own on one thread. Memory: the growth of the peak resident set over hidden states, weight and their
gradients. Time: of the processor, the least of REPEATS.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

HEADS = [("49k x 576 (SmolLM2-135M)", 49152, 576), ("152k x 896 (Qwen2.5-0.5B)", 151936, 896)]
WAYS = ["whole", "checkpoint", "fused 2^22", "fused 2^24"]


def measure(way: str, vocabulary: int, width: int, tokens: int, dtype_name: str, repeats: int) -> dict[str, float]:
    """Run one way in this process; return seconds, MiB and the loss."""
    import torch

    from w2sr.training import fused

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width) * 0.02).to(dtype).requires_grad_()
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    targets = torch.randint(0, vocabulary, (tokens,))
    run = ways(way, fused, torch, hidden, weight, targets)
    before, seconds, loss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], 0.0
    for _ in range(repeats):
        began = time.process_time()
        total = run() / tokens
        torch.autograd.backward(total)
        seconds.append(time.process_time() - began)
        loss = total.item()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "mib": (after - before) / 1024, "loss": loss}


def ways(way: str, fused: Any, torch: Any, hidden: Any, weight: Any, targets: Any) -> Any:
    """What computes the summed loss."""
    cross_entropy = torch.nn.functional.cross_entropy

    def of(part: Any, wanted: Any) -> Any:
        return cross_entropy((part @ weight.T).float(), wanted, reduction="sum")

    if way == "whole":
        return lambda: of(hidden, targets)
    if way == "checkpoint":
        from torch.utils.checkpoint import checkpoint

        size = (1 << 24) // weight.shape[0]
        parts = [slice(start, start + size) for start in range(0, len(targets), size)]
        return lambda: sum(checkpoint(of, hidden[part], targets[part], use_reentrant=False) for part in parts)
    fused.CHUNK_ELEMENTS = 1 << int(way.split("^")[1])
    ones = torch.ones(len(targets))
    positions = torch.arange(len(targets))
    return lambda: fused.fused_loss(hidden, fused.Projection(weight), fused.Supervised(positions, targets, ones, fused.TokenLoss()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", nargs="?", type=int, default=2048)
    parser.add_argument("repeats", nargs="?", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*json.loads(asked.one))))
        return
    print(f"{asked.tokens} tokens\n\n| head | weights | way | processor seconds | MiB | loss |\n|---|---|---|---:|---:|---:|")
    for name, vocabulary, width in HEADS:
        for dtype in ("float32", "bfloat16"):
            for way in WAYS:
                one = json.dumps([way, vocabulary, width, asked.tokens, dtype, asked.repeats])
                done = subprocess.run([sys.executable, __file__, "--one", one], capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                print(f"| {name} | {dtype} | {way} | {found['seconds']:.2f} | {found['mib']:.0f} | {found['loss']:.5f} |", flush=True)


if __name__ == "__main__":
    main()

"""Tokens per second of our hf engine, of transformers' continuous batching and of vLLM, on the same prompts, side by side in one run.

    make setup-vllm
    .venv/bin/python benchmarks/hf_vs_vllm.py ../shared/data/gsm8k/test.jsonl --vllm-python .venv-vllm/bin/python

Every engine is a process of its own with the model loaded and warm. The rounds go round the engines in turn, one at work at a time, so that
whatever else the machine does falls on all alike; processor time is shown beside the clock, because it is disturbed less. Counted are the
generated tokens of `--requests` prompts, sampled until EOS or `--tokens`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from w2sr.prompting import PromptStyle  # noqa: E402
from w2sr.teachers.config import HFEngineConfig, SamplingConfig, VLLMEngineConfig  # noqa: E402
from w2sr.teachers.engine import GeneratorSpec, Request  # noqa: E402

ENGINES = ["hf", "hf-bf16", "hf-continuous", "hf-continuous-bf16", "vllm"]
TEMPERATURE, TOP_P = 0.7, 0.95

# Requests in, generated tokens out.
Complete = Callable[[list[Request]], Awaitable[int]]


def requests_of(path: Path, count: int) -> list[Request]:
    """Return the first `count` questions of a JSONL file, as requests."""
    with open(path, encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for line, _ in zip(lines, range(count))]
    return [Request(f"t{number}", f"p{number}", 0, number, question, number) for number, question in enumerate(questions)]


async def serve(arguments: argparse.Namespace) -> None:
    """Be one engine: a line on stdin starts a round, its tokens and seconds are a line on stdout."""
    complete = await start(arguments)
    requests = requests_of(arguments.questions, arguments.requests)
    await complete(requests[:8])  # warm
    print(json.dumps({"ready": arguments.serve}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        began = time.perf_counter()
        tokens = await complete(requests)
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - began}), flush=True)


async def start(arguments: argparse.Namespace) -> Complete:
    """Return the engine that `arguments.serve` names."""
    kind, _, dtype = arguments.serve.partition("-bf16")
    precision = "bfloat16" if dtype or "bf16" in arguments.serve else "float32"
    sampling = SamplingConfig(temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=arguments.tokens)
    if kind == "hf-continuous":
        return continuous(arguments, precision)
    if kind == "vllm":
        from w2sr.teachers.vllm_engine import VLLMEngine

        config = VLLMEngineConfig(
            kind="vllm",
            max_model_len=1024,
            max_in_flight=arguments.requests,
            engine_args={"enforce_eager": True} if arguments.eager else {},
        )
        engine = await VLLMEngine.start(
            GeneratorSpec("vllm", str(arguments.model), "", PromptStyle(), sampling, config), config, "cpu", arguments.threads
        )
    else:
        from w2sr.teachers.hf_engine import HFEngine

        spec = GeneratorSpec("hf", str(arguments.model), "", PromptStyle(), sampling, HFEngineConfig(dtype=precision))
        engine = await HFEngine.start(spec, "cpu", arguments.threads)

    async def complete(requests: list[Request]) -> int:
        return sum(completion.num_tokens for completion in await engine.complete(requests))

    return complete


def continuous(arguments: argparse.Namespace, precision: str) -> Complete:
    """Return transformers' own continuous batching."""
    import torch
    from transformers import GenerationConfig

    from w2sr.prompting import render_prefix
    from w2sr.teachers.hf_engine import load_model

    torch.set_num_threads(arguments.threads)
    tokenizer, model = load_model(str(arguments.model), "cpu", precision)
    generation = GenerationConfig(
        max_new_tokens=arguments.tokens,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

    async def complete(requests: list[Request]) -> int:
        prefixes = [list(render_prefix(tokenizer, PromptStyle(), request.question).ids) for request in requests]
        done = model.generate_batch(prefixes, generation_config=generation)
        assert len(done) == len(requests), f"{len(done)} of {len(requests)} came back"
        return sum(len(output.generated_tokens) for output in done.values())

    return complete


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Start every engine, then run the rounds."""
    processes: dict[str, subprocess.Popen[str]] = {}
    rounds: dict[str, list[dict[str, float]]] = {}
    try:
        for engine in arguments.engines:
            python = arguments.vllm_python if engine == "vllm" else sys.executable
            command = [str(python), __file__, *sys.argv[1:], "--serve", engine]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            processes[engine] = process
            _answer(process)
            print(f"{engine} is ready", flush=True)
        for _ in range(arguments.rounds):
            for engine, process in processes.items():
                assert process.stdin is not None
                before = _processor_seconds(process.pid)
                print("go", file=process.stdin, flush=True)
                last = _answer(process)
                rounds.setdefault(engine, []).append(last | {"cpu": _processor_seconds(process.pid) - before})
                print(
                    f"{engine}: {last['tokens']} tokens in {last['seconds']:.1f} s: {last['tokens'] / last['seconds']:.1f} tokens/s",
                    flush=True,
                )
    finally:
        for process in processes.values():
            process.kill()
    return rounds


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    for line in process.stdout:  # vLLM logs there too
        if line.startswith("{"):
            answer: dict[str, float] = json.loads(line)
            return answer
    raise RuntimeError(f"an engine ended with exit code {process.wait()}; its reason is above")


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process and its descendants: other programs disturb it less than they disturb the clock."""
    import psutil

    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(sum(member.cpu_times()[:2]) for member in family))


def main() -> None:
    """Print a table: every round, and the median over the rounds of the ratio to the first engine's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path)
    parser.add_argument(
        "--model", type=Path, default=Path.home() / ".cache/w2sr/smollm2-135m-0.1.2", help="made by python -m tests.smollm2"
    )
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="vLLM without compiling")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments))
        return
    rounds = measure(arguments)
    print("\n| engine | tokens/s (rounds) | of `hf`, median | tokens per CPU second (rounds) | of `hf`, median |\n|---|---|---|---|---|")
    for engine, results in rounds.items():
        cells = [engine]
        for key in ("seconds", "cpu"):
            rates = [result["tokens"] / result[key] for result in results]
            ratios = [rate / (first["tokens"] / first[key]) for rate, first in zip(rates, rounds[arguments.engines[0]])]
            cells += [", ".join(f"{rate:.1f}" for rate in rates), f"{statistics.median(ratios):.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""Supervised tokens per second and loss of our training and of TRL's SFTTrainer: same model, same rows, same cores, side by side.

    python -m venv trl-env && trl-env/bin/pip install -c constraints.txt -e . trl==1.16.0
    trl-env/bin/python benchmarks/train_vs_trl.py ../shared/data/traces/gsm8k_gemma_2b_weak.json --model FOLDER

Every contender is one group of processes with the model loaded. The rounds go round the contenders in turn, one optimizer step each and one
at work at a time, so that whatever else the machine does falls on all alike; the first `--warm` rounds do not count. All start from the
same weights, see the same rows (in orders of their own), with the same number of tokens a step, AdamW and constant learning rate, in fp32.
Without --model a Llama of 31 M parameters with random weights is made, with the tokenizer of --tokenizer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# TRL's settings: packing is its best-fit; a batch of several packed sequences is flattened into one mask, so 1 is its fastest batch size.
TRL: dict[str, dict[str, Any]] = {
    "trl-packed": {"packing": True, "per_device_train_batch_size": 1},
    "trl-bucketed": {"packing": False, "per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length"},
}
OURS = {"w2sr-packed": (True, 1), "w2sr-packed-2-ranks": (True, 2), "w2sr-bucketed": (False, 1), "w2sr-bucketed-2-ranks": (False, 2)}
SHARED: dict[str, Any] = {"learning_rate": 1e-5, "beta1": 0.9, "beta2": 0.95}
NUM_THREADS = os.cpu_count() or 1


def main() -> None:
    """Compare, or be one contender (`--serve`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, help="the weak teacher's traces: a JSON list of content and output")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer a random model gets")
    parser.add_argument("--contenders", nargs="+", default=[*TRL, *OURS], choices=[*TRL, *OURS])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=8, help="packed sequences of an optimizer step")
    parser.add_argument("--serve", choices=[*TRL, *OURS])
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    if arguments.serve in TRL:
        serve_trl(arguments)
    elif arguments.serve:
        serve_ours(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Prepare rows and model, let every contender do its steps in turn, and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments.scratch = Path(scratch)
        arguments.model = prepare(arguments)
        with contextlib.ExitStack() as stack:
            running = {name: stack.enter_context(started(name, arguments)) for name in arguments.contenders}
            for name, process in running.items():
                print(f"{name} is ready: {ask(process)}", flush=True)
            steps: dict[str, list[dict[str, float]]] = {name: [] for name in running}
            for number in range(arguments.warm + arguments.rounds):
                for name, process in running.items():
                    steps[name].append(ask(process, "step"))
                    print(f"round {number + 1} {name}: {steps[name][-1]}", flush=True)
    show(arguments, steps)


def show(arguments: argparse.Namespace, steps: dict[str, list[dict[str, float]]]) -> None:
    """Print supervised tokens a second, the ratio to the first contender of the same round (median, extremes), and losses."""
    print(f"\n{platform.machine()}, {NUM_THREADS} cores, {arguments.rounds} steps each; loss: mean of the first and the last three steps")
    print("| contender | supervised tokens/s | ratio to the first, median (least to most) | tokens a step | loss first | loss last |")
    print("|---|---|---|---|---|---|")
    rates = {name: [step["supervised"] / step["seconds"] for step in of[arguments.warm :]] for name, of in steps.items()}
    first = rates[next(iter(rates))]
    for name, of in steps.items():
        ratios = [one / other for one, other in zip(rates[name], first)]
        losses = [step["loss"] for step in of]
        print(
            f"| {name} | {statistics.median(rates[name]):.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {statistics.mean(step['tokens'] for step in of[1:]):.0f} | {statistics.mean(losses[:3]):.4f} "
            f"| {statistics.mean(losses[-3:]):.4f} |"
        )


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the gated rows to the scratch folder, for us and (rows.json: token ids, prefix lengths) for TRL; return the model's folder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from w2sr.packing.rows import build_rows, model_limits
    from w2sr.prompting import PromptStyle
    from w2sr.records import Example
    from w2sr.training.data import save_rows

    folder = arguments.model
    if folder is None:
        import torch

        folder = arguments.scratch / "model"
        shutil.copytree(arguments.tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.manual_seed(0)
        whole = json.loads((folder / "config.json").read_text())
        shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2}
        kept = {name: whole[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
        LlamaForCausalLM(LlamaConfig(**shape, **kept, head_dim=64, max_position_embeddings=2048)).save_pretrained(folder)
    traces = json.loads(arguments.traces.read_text())
    examples = [Example(str(t["id"]), str(t["id"]), t["content"], " " + t["output"], "weak", None, None) for t in traces]
    style = PromptStyle(format="plain", user="{question}")
    rows = build_rows(AutoTokenizer.from_pretrained(folder), style, examples, arguments.max_length, model_limits(folder)).kept
    save_rows(arguments.scratch / "all.rows.arrow", rows)
    (arguments.scratch / "rows.json").write_text(json.dumps([[list(row.ids), row.num_prefix] for row in rows]))
    return Path(folder)


@contextlib.contextmanager
def started(name: str, arguments: argparse.Namespace) -> Any:
    """Start a contender's group of ranks; the first is asked, the others follow it in the collectives."""
    ranks = OURS[name][1] if name in OURS else 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(arguments.traces), "--serve", name, "--model", str(arguments.model)]
    command += ["--scratch", str(arguments.scratch), "--max-length", str(arguments.max_length), "--sequences", str(arguments.sequences)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": str(NUM_THREADS // ranks)}
    processes = []
    log = open(arguments.scratch / f"{name}.log", "w")  # noqa: SIM115 - closed below
    for rank in range(ranks):
        where = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=where, stdin=pipe, stdout=pipe, stderr=log, text=True))
    try:
        yield processes[0]
    except SystemExit:
        print((arguments.scratch / f"{name}.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


def ask(process: subprocess.Popen[str], line: str = "") -> dict[str, float]:
    """Send `line` if there is one, and return the next JSON line of the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    for answer in process.stdout:
        if answer.startswith("{"):
            return dict(json.loads(answer))
    raise SystemExit(f"a contender ended with {process.wait()}; its log says why")


class Turns:
    """Waits for a line on stdin before each step, and answers with what the step did."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._began: float | None = None
        self._worked = 0.0

    def begin(self) -> None:
        """Say that the last step is over (or all is ready), wait for the next turn."""
        if self._began is None:
            self.say({"ready": 1.0})
        if not sys.stdin.readline():
            os._exit(0)
        self._began, self._worked = time.perf_counter(), time.process_time()

    def end(self, tokens: int, supervised: int, loss: float) -> None:
        """Report the step that began with `begin`."""
        assert self._began is not None
        spent = {"seconds": time.perf_counter() - self._began, "cpu_seconds": time.process_time() - self._worked}
        self.say({**spent, "tokens": tokens, "supervised": supervised, "loss": loss})

    def say(self, values: dict[str, float]) -> None:
        """Write one answer."""
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def serve_ours(arguments: argparse.Namespace) -> None:
    """Be our training: the loop as it is, one step a turn."""
    from w2sr.artifacts import model_digest
    from w2sr.training import loop
    from w2sr.training.config import TrainConfig
    from w2sr.training.spec import TrainSpec

    packing, ranks = OURS[arguments.serve]
    output, rank, path = arguments.scratch / arguments.serve, int(os.environ["RANK"]), arguments.scratch / "all.rows.arrow"
    settings = settings_of(arguments, packing, ranks)
    train = TrainConfig.model_validate(settings)
    spec = TrainSpec(arguments.serve, 0, train, str(arguments.model), model_digest(arguments.model), str(path), str(output))
    turns, done = Turns(sys.stdout), loop._Trainer._step
    sys.stdout = sys.stderr

    def step(trainer: Any, *rest: Any) -> Any:
        if rank == 0:
            turns.begin()
        before = trainer.position
        stop = done(trainer, *rest)
        now = trainer.position
        if rank == 0:
            loss = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
            turns.end(now.tokens - before.tokens, now.supervised_tokens - before.supervised_tokens, loss)
        return stop

    loop._Trainer._step = step  # type: ignore[method-assign]
    loop.train(spec)


def settings_of(arguments: argparse.Namespace, packing: bool, ranks: int) -> dict[str, Any]:
    """Return the training's configuration: the tokens of a step are those of `--sequences` full ones."""
    tokens = arguments.sequences * arguments.max_length
    batch = {"global_batch_size": arguments.sequences, "micro_batch_size": 1}
    if not packing:
        batch = {"global_batch_tokens": tokens, "micro_batch_tokens": 2 * arguments.max_length}
    return {
        **batch,
        "max_steps": 10_000,
        "num_ranks": ranks,
        "cpus_per_rank": NUM_THREADS // ranks,
        "packing": packing,
        "max_length": arguments.max_length,
        "learning_rate": SHARED["learning_rate"],
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "checkpoint_every": 10_000,
        "watch": {"step_timeout_s": 3600},
    }


def serve_trl(arguments: argparse.Namespace) -> None:
    """Be TRL: SFTTrainer as documented, one step a turn."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(NUM_THREADS)
    turns = Turns(sys.stdout)
    sys.stdout = sys.stderr
    rows = json.loads((arguments.scratch / "rows.json").read_text())
    mean_length = sum(len(ids) for ids, _ in rows) / len(rows)
    masks = [[0] * prefix + [1] * (len(ids) - prefix) for ids, prefix in rows]
    dataset = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "completion_mask": masks})
    options = TRL[arguments.serve]
    per_step = arguments.sequences if options["packing"] else 16 * round(arguments.sequences * arguments.max_length / mean_length / 16)
    config = SFTConfig(
        output_dir=str(arguments.scratch / arguments.serve),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=arguments.max_length,
        completion_only_loss=True,
        gradient_accumulation_steps=per_step // options["per_device_train_batch_size"],
        learning_rate=SHARED["learning_rate"],
        adam_beta1=SHARED["beta1"],
        adam_beta2=SHARED["beta2"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_steps=10_000,
        **options,
    )

    class Turn(TrainerCallback):  # type: ignore[misc]
        seen = (0, 0)  # transformers collates the batches of a step before the step begins

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_log(self, _: Any, __: Any, ___: Any, logs: Any = None, **____: Any) -> None:
            if logs and "loss" in logs:
                turns.end(*Turn.seen, float(logs["loss"]))
                Turn.seen = (0, 0)

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Turn()])
    collate = trainer.data_collator

    def counted(samples: Any) -> Any:
        batch = collate(samples)
        kept = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        Turn.seen = (Turn.seen[0] + int(kept), Turn.seen[1] + int((batch["labels"] != -100).sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()


if __name__ == "__main__":
    main()

"""`w2sr plan CONFIG`: memory, time and disk of a run before it starts; `w2sr plan RUN_DIR`: what was predicted against what happened."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = "Exit code: 0 everything fits, 2 something does not (the last lines say what would) or a mistake in the call."
# Option, its field in planning/assumptions.py, and what it means. The defaults stand there.
ASSUMED = (
    ("--gpu-memory-gb", "gpu_gib", "GiB of one GPU (default: 79, what 80 GB cards have)"),
    ("--host-memory-gb", "host_gib", "GiB of one node's memory, for what is offloaded (default: 1000)"),
    ("--gpus-per-node", "gpus_per_node", "GPUs of one node (default: 8)"),
    ("--tflops", "tflops", "dense bf16 peak of one GPU (default: 989, an H100)"),
    ("--efficiency", "efficiency", "share of the peak while a GPU computes (default: 0.55)"),
    ("--interconnect", "across", "GB/s between a GPU and those of other nodes (default: 40)"),
    ("--prompt-tokens", "prompt_tokens", "tokens of a prompt (default: 200)"),
    ("--answer-share", "answer_share", "tokens of an answer over its limit (default: 0.5)"),
)

SHARES = ("efficiency", "answer_share")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "predict memory, GPU-hours, disk and time of a run, and say what to change where it does not fit"
    command = commands.add_parser("plan", parents=[debug], help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG)
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; or the folder of a run: predicted against actual")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override a value, for example train.zero_stage=3")
    command.add_argument("--gpus", type=int, metavar="N", help="train on N GPUs: train.num_ranks=N train.use_gpu=true")
    for option, name, meaning in ASSUMED:
        kind = int if name == "gpus_per_node" else float
        command.add_argument(option, dest=name, type=kind, metavar="X", help=meaning)
    command.add_argument("--json", action="store_true", help="print the plan as JSON: bytes and seconds")
    command.set_defaults(command=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    """Print the plan; return 2 when something does not fit."""
    import json
    import math
    from contextlib import nullcontext

    from w2sr.config import load_config
    from w2sr.errors import UserError
    from w2sr.planning.actual import compare_run, render_comparison
    from w2sr.planning.assumptions import Assumptions
    from w2sr.planning.plan import make_plan
    from w2sr.planning.render import as_json, render
    from w2sr.run import Run, open_folder

    given = {name: getattr(arguments, name) for _, name, _ in ASSUMED if getattr(arguments, name) is not None}
    if arguments.config.is_dir():
        options = [option for option, name, _ in ASSUMED if name in given]
        if arguments.overrides or arguments.gpus is not None or options:
            wrong = " ".join([*arguments.overrides, *(["--gpus"] if arguments.gpus is not None else []), *options])
            raise UserError(
                f"{arguments.config} is a run: it shows what happened and takes no overrides or assumptions (given: {wrong}); "
                f"give {arguments.config}/config.yaml"
            )
        compared = compare_run(open_folder(arguments.config))
        print(json.dumps(compared, indent=1) if arguments.json else render_comparison(compared))
        return 0
    for option, name, _ in ASSUMED:
        most = 1 if name in SHARES else math.inf
        if name in given and not (0 < given[name] <= most and math.isfinite(given[name])):
            raise UserError(f"{option}={given[name]:g}: give a finite number of more than 0{', 1 at most' if name in SHARES else ''}")
    if arguments.gpus is not None and arguments.gpus < 1:
        raise UserError(f"--gpus={arguments.gpus}: give a number of at least 1")
    more = [f"train.num_ranks={arguments.gpus}", "train.use_gpu=true"] if arguments.gpus else []
    config = load_config(arguments.config, [*arguments.overrides, *more])
    plan = make_plan(Run(config, Path(config.run_dir), nullcontext), Assumptions(**given))
    print(json.dumps(as_json(plan), indent=1) if arguments.json else render(plan))
    return 0 if plan.fits else 2

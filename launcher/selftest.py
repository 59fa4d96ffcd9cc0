"""`w2sr selftest CONFIG`: the trainer's promises, shown on the user's own model and data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = "Exit code: 0 all passed, 1 a check failed, 2 a mistake in the call or no data yet. The run folder is left as it is."


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "show on your own model and data that packing, accumulation, ranks, resuming and export change nothing"
    command = commands.add_parser("selftest", parents=[debug], help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG)
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; its run_dir has curated arms, or prompts with references")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override a value, for example train.packing=false")
    command.add_argument("--rows", type=int, default=32, metavar="N", help="rows to train on (default: 32); all pass the gate")
    command.add_argument("--ranks", type=int, default=2, metavar="N", help="ranks that stand against one (default: 2)")
    command.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="longest wait for one group of ranks (default: 1800)")
    command.add_argument("--json", action="store_true", help="print the checks as JSON")
    command.set_defaults(command=_selftest)


def _selftest(arguments: argparse.Namespace) -> int:
    """Print the table; return 1 when a check failed."""
    import json
    from contextlib import nullcontext

    from w2sr.config import load_config
    from w2sr.errors import UserError
    from w2sr.run import Run
    from w2sr.selftest.render import as_json, render
    from w2sr.selftest.selftest import Options, selftest

    for option, value, least in (("--rows", arguments.rows, 1), ("--ranks", arguments.ranks, 2), ("--timeout", arguments.timeout, 1)):
        if value < least:
            raise UserError(f"{option} is {value:g}; give at least {least}")
    config = load_config(arguments.config, arguments.overrides)
    run = Run(config, Path(config.run_dir), nullcontext)
    found = selftest(
        run, Options(arguments.rows, arguments.ranks, arguments.timeout), lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(json.dumps(as_json(found), indent=1) if arguments.json else render(found))
    return 0 if all(check.passed for check in found) else 1

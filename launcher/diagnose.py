"""`w2sr diagnose RUN_DIR`: what the teachers' traces are like, before training money is spent on them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "show what the teachers' traces are like: accuracy, format, loops, lengths, diversity"
    command = commands.add_parser("diagnose", parents=[debug], help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="folder of the run, for example runs/quickstart; it need not be finished"
    )
    command.add_argument("--show", metavar="TRACE_ID", help="print one trace with its prompt instead; the beginning of its id will do")
    command.set_defaults(command=_diagnose)


def _diagnose(arguments: argparse.Namespace) -> int:
    from w2sr.diagnosis.diagnose import diagnose, write_diagnosis
    from w2sr.diagnosis.render import render_diagnosis
    from w2sr.diagnosis.show import render_trace

    if arguments.show is not None:
        print(render_trace(arguments.run_dir, arguments.show))
        return 0
    diagnosis = diagnose(arguments.run_dir)
    print(render_diagnosis(diagnosis))
    print(f"\nwritten: {write_diagnosis(arguments.run_dir, diagnosis)}")
    return 0

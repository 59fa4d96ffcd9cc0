"""`w2sr replay RUN_DIR TRACE_ID`: makes one trace again and compares."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "make one trace again and compare it with the stored one"
    description = text[0].upper() + text[1:] + ". Exit code 0: the same; 1: different; 2: it cannot be made again."
    command = commands.add_parser("replay", parents=[debug], help=text, description=description)
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run, for example runs/quickstart")
    command.add_argument("trace_id", metavar="TRACE_ID", help="id of a trace in generate/ or evaluate/; its beginning will do")
    command.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    import dataclasses

    from w2sr.diagnosis.lookup import find_trace
    from w2sr.pipeline import open_run
    from w2sr.run import open_folder
    from w2sr.teachers.replay import NO_PROMISE, differences, made_otherwise, make_again, original_of

    config = open_folder(arguments.run_dir).config
    with open_run(config) as opened:
        run = dataclasses.replace(opened, folder=arguments.run_dir)  # the folder may have been moved since
        found = find_trace(run.folder, arguments.trace_id)
        original = original_of(run, found.trace, found.stage)
        together = f" with the {len(original.requests) - 1} others of its batch" if len(original.requests) > 1 else ""
        print(f"trace {found.trace.trace_id} of {found.stage}: making it again on {original.spec.engine.kind}{together}")
        for change in original.changes():
            print(f"note: {change}")
        again = make_again(run, original)
    for change in made_otherwise(found.trace, again):
        print(f"note: {change}")
    different = differences(found.trace, again)
    if not different:
        ids = "token ids unknown" if again.token_ids is None or found.trace.token_ids is None else f"{len(again.token_ids):,} token ids"
        print(f"same: {len(again.text):,} characters, {ids}, finish_reason {again.finish_reason}")
        return 0
    print("\n".join(["different:", *different]))
    if original.spec.engine.kind in NO_PROMISE:
        print(f"note: {NO_PROMISE[original.spec.engine.kind]}")
    return 1

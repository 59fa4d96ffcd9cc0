"""`w2sr export RUN_DIR --arm ARM`: training rows in the formats that other tools read."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("messages", "alpaca", "sharegpt", "trl")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "write a curated arm as a data set for other tools, with a card"
    command = commands.add_parser("export", parents=[debug], help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run; its curate stage must be finished")
    command.add_argument("--arm", required=True, metavar="ARM", help="which arm, for example correct")
    command.add_argument("--format", choices=FORMATS, default="messages", help="default: messages")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder to make (default: RUN_DIR/export/ARM-FORMAT)")
    command.add_argument("--parquet", action="store_true", help="Parquet in place of JSONL")
    command.add_argument("--drop-truncated", action="store_true", help="leave out traces that the token limit cut")
    command.add_argument("--license", metavar="ID", help="licence of the data set, for its card, for example apache-2.0")
    command.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> int:
    from w2sr.export.write import export_arm
    from w2sr.run import open_folder

    folder: Path = arguments.run_dir
    run = open_folder(folder)
    out: Path = arguments.out or folder / "export" / f"{arguments.arm}-{arguments.format}"
    number = export_arm(run, arguments.arm, arguments.format, out, arguments.parquet, arguments.drop_truncated, arguments.license)
    print(f"{number:,} rows of arm {arguments.arm}: {out}")
    return 0

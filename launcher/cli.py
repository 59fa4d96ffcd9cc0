"""The `w2sr` command: parses, dispatches, and turns every outcome into one message and an exit code.

Exit codes: 0 done, 1 a fault of ours or of the machine, 2 a mistake the user can mend, 75 stopped at stop_by before the work was done (run
it again), 130 interrupted, 143 terminated.
Nothing heavy is imported before a command is known: `w2sr --help` must answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

STAGES = {
    "prompts": "collect the prompts and split them into train, selection and test",
    "generate": "let the teachers write traces",
    "verify": "judge every trace: correct, incorrect or unverifiable",
    "curate": "build the arms that train a student, and keep every reject with its reason",
    "train": "fine-tune one student for each arm and seed",
    "evaluate": "let base, teachers and students answer the held-out prompts",
    "analyse": "count words, behaviours and mistakes in the answers: why scores moved",
    "report": "write report.html, report.md and report.json",
}


INTERRUPTED = 130


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it passes every handler and closes what is open."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, _on_sigterm)
    _quiet_libraries()
    again = "run the same command again to go on; what was finished is kept"
    try:
        code = _guarded(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        code = _fail(f"interrupted; {again}", INTERRUPTED)
    except Terminated:
        return _fail(f"terminated; {again}", 143)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # The reader of our output (head, less) has gone: not an error, but Python must not complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if code == INTERRUPTED:
        # Everything of ours is closed. Another Ctrl-C ends the process at once, where libraries' exit handlers would show their traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _nobody_reads() -> bool:
    """Return whether our output goes into a pipe that nobody reads any more."""
    outputs = select.poll()
    for fd in (1, 2):
        outputs.register(fd, 0)
    return any(event & select.POLLERR for _, event in outputs.poll(0))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line. argparse takes positional arguments in one go: overrides behind an option are given to it here."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _guarded(arguments: argparse.Namespace) -> int:
    from cluster.errors import ClusterError
    from w2sr.errors import StoppedEarly, UserError

    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except (UserError, ClusterError) as error:
        if arguments.debug:
            raise
        return _fail(str(error), 2)
    except StoppedEarly as error:
        return _fail(str(error), os.EX_TEMPFAIL)
    except OSError as error:
        if arguments.debug or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        return _fail(
            f"the disk is full{where} ({error.strerror}); free some space and run the same command again: what was finished is kept", 2
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from launcher import benchmarks, cluster, diagnose, doctor, export, jobs, kuberay, label, placement, plan, replay, selftest, why
    from w2sr import __version__

    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="w2sr",
        description="Strong reasoners from weak teachers: traces, verification, full fine-tuning, honest evaluation.",
        epilog="Start with: w2sr run configs/quickstart.yaml",
        parents=[debug],
    )
    parser.add_argument("--version", action="version", version=f"w2sr {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_pipeline(commands, debug)
    status = commands.add_parser("status", parents=[debug], help="show stages, counts and what is missing of a run")
    status.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run, for example runs/quickstart")
    status.set_defaults(command=_status)
    benchmarks.add(commands, debug)
    cluster.add(commands, debug)
    diagnose.add(commands, debug)
    doctor.add(commands, debug)
    export.add(commands, debug)
    jobs.add(commands, debug)
    kuberay.add(commands, debug)
    label.add(commands, debug)
    placement.add(commands, debug)
    plan.add(commands, debug)
    replay.add(commands, debug)
    selftest.add(commands, debug)
    why.add(commands, debug)
    _add_config(commands, debug)
    _add_lab(commands, debug)
    return parser


def _add_pipeline(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    from launcher import report

    helps = {"run": "run the whole pipeline: " + ", ".join(STAGES), **STAGES}
    for name, text in helps.items():
        if name == "report":
            report.add(commands, debug, text)
            continue
        command = commands.add_parser(name, parents=[debug], help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="override a value, for example train.learning_rate=1e-3")
        command.set_defaults(command=_pipeline, stages=list(STAGES) if name == "run" else [name])


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    config = commands.add_parser("config", help="look at configurations")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    schema = actions.add_parser("schema", parents=[debug], help="print the JSON schema, for editors")
    schema.set_defaults(command=_config_schema)
    show = actions.add_parser("show", parents=[debug], help="check a configuration and print it with every default filled in")
    show.add_argument("config", type=Path, metavar="CONFIG")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.set_defaults(command=_config_show)


def _add_lab(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    lab = commands.add_parser("lab", help="the tiny models of the quickstart")
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", parents=[debug], help="train the tiny teacher and student again by their recipe")
    build.add_argument("names", nargs="*", metavar="NAME", help="which models (default: all)")
    build.add_argument("--out", type=Path, default=Path("build/lab"), metavar="DIR", help="where to write them (default: build/lab)")
    build.set_defaults(command=_lab_build)


def _pipeline(arguments: argparse.Namespace) -> int:
    from launcher.attempt import attempt
    from w2sr.config import load_config
    from w2sr.pipeline import preflight, run_stages

    config = load_config(arguments.config, arguments.overrides)
    preflight(config, arguments.stages)  # before the run folder is made: what cannot work leaves nothing behind
    with attempt(config):
        run_stages(config, arguments.stages)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from w2sr.status import render_status

    print(render_status(arguments.run_dir))
    return 0


def _config_schema(_: argparse.Namespace) -> int:
    import json

    from w2sr.config import PipelineConfig

    print(json.dumps(PipelineConfig.model_json_schema(), indent=2))
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    from w2sr.config import dump_config, load_config

    print(dump_config(load_config(arguments.config, arguments.overrides)), end="")
    return 0


def _lab_build(arguments: argparse.Namespace) -> int:
    from w2sr.lab.build import build_all

    build_all(arguments.out, arguments.names or None)
    return 0


def _quiet_libraries() -> None:
    """Keep libraries' chatter off the console unless the user asked for it by setting the variable."""
    for name, value in {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}.items():
        os.environ.setdefault(name, value)


def _on_sigterm(_signum: int, _frame: object) -> None:
    raise Terminated


def _fail(message: str, code: int) -> int:
    print(f"w2sr: {message}", file=sys.stderr)
    return code

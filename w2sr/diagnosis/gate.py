"""Whether a teacher is good enough to spend more on it."""

from __future__ import annotations

from w2sr.diagnosis.config import GateConfig
from w2sr.diagnosis.rates import Rate
from w2sr.diagnosis.tally import TeacherDiagnosis

# Two-sided, hence one in a hundred on the side that stops: were a teacher's true rate exactly at the limit, so bad a count would come up
# less than once in a hundred times. So 1 loop in 3 traces does not stop a run (the limit being 2 %), and 3 in 3 do.
GATE_CONFIDENCE = 0.98


def gate(diagnosis: TeacherDiagnosis, config: GateConfig, run_dir: str = "RUN_DIR") -> list[str]:
    """Return why the run should stop at this teacher, one message for each limit it fails; empty: it passes.

    A limit is failed when the whole 98 % interval of the rate lies on its wrong side: a few bad traces by chance stop nothing, and more bad
    traces among the same number never turn a stop into a pass. `run_dir` is named in the advice.
    """
    reasons = []
    valid, loops = diagnosis.rates["format_valid"], diagnosis.rates["loop"]
    if valid.interval(GATE_CONFIDENCE)[1] < config.min_format_valid:
        causes = ", ".join(f"{name.replace('_', ' ')} {diagnosis.rates[name].count:,}" for name in ("no_answer", "truncated", "failed"))
        reasons.append(
            f"teacher {diagnosis.teacher}: only {_shown(valid)} requests ended by themselves with a final answer; "
            f"generate.gate.min_format_valid asks for {100 * config.min_format_valid:g} %. Found: {causes}. "
            + _advice(
                diagnosis, "not_format_valid", run_dir, "min_format_valid=0", "its prompt style, its chat template and max_new_tokens"
            )
        )
    if loops.interval(GATE_CONFIDENCE)[0] > config.max_loops:
        reasons.append(
            f"teacher {diagnosis.teacher}: {_shown(loops)} traces are loops; generate.gate.max_loops allows {100 * config.max_loops:g} %. "
            + _advice(diagnosis, "loop", run_dir, "max_loops=1", "its temperature (greedy decoding loops most) and its prompt style")
        )
    return reasons


def _shown(rate: Rate) -> str:
    low, high = rate.interval(GATE_CONFIDENCE)
    return f"{rate.count:,} of {rate.total:,} ({100 * rate.value:.1f} %, interval {100 * low:.1f} to {100 * high:.1f})"


def _advice(diagnosis: TeacherDiagnosis, example: str, run_dir: str, override: str, suspects: str) -> str:
    ids = diagnosis.examples[example]
    return (
        f"See for example {', '.join(ids)} with `w2sr diagnose {run_dir} --show {ids[0]}`. Check {suspects}; "
        f"to go on as it is, add generate.gate.{override} to the command"
    )

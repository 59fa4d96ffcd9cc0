"""Kills trainings at random moments, resumes them until they are done, and compares the weights with those of a calm training, bit by bit.

    python -m benchmarks.training_faults FOLDER [--kills 72] [--seed 0]      (FOLDER must not exist; removed at the end)

Two ranks, CPU, fp32, a Llama of 20 k parameters, 90 steps, a checkpoint every 2, at ZeRO 2 and 3, checkpoints written in place and beside
the steps. Each of these four trainings is killed a quarter of the times: each time it is started, a moment is chosen (of those in
tests/distributed/kills.py, each equally often; first, in random order, those before the last step, then those after it), which time that it
comes counts, how long after its begin the kill is (half of them at once, half up to 30 ms later), and who gets SIGKILL: rank 0, rank 1 or
both. A start in which that moment has not come in 7 steps is killed then. The dying rank writes down what is under way. A conversion for
another number of ranks is killed in a start of one rank; the training then goes on with two, from the original checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from tests.distributed.kills import MOMENTS, Kill
from tests.distributed.ranks import make_spec, started, steps_logged, train_on_ranks, write_spec
from w2sr.training.spec import TrainSpec

STEPS = 90
CONVERTING = "converting for another number of ranks"
LATE = [moment for moment in MOMENTS if moment.startswith("exporting") or moment in ("writing the result", "removing the last checkpoint")]


def plan(rng: random.Random, num_kills: int) -> list[Kill]:
    """Return kills in an order in which a training can meet them: those at its end come last."""
    early = [moment for moment in MOMENTS if moment not in LATE]
    rng.shuffle(early)
    early.remove(CONVERTING)
    early.insert(4, CONVERTING)  # it needs a checkpoint
    num_late = min(len(LATE), round(num_kills * len(LATE) / len(MOMENTS)))
    moments = [early[n % len(early)] for n in range(num_kills - num_late)] + sorted(rng.sample(LATE, num_late), key=LATE.index)
    return [_kill(rng, moment, often=moment in early and not moment.startswith(("start", "conv"))) for moment in moments]


def _kill(rng: random.Random, moment: str, often: bool) -> Kill:
    who = None if moment == CONVERTING else rng.choice([0, 1, None])
    at_latest = None if moment in LATE else 7
    return Kill(moment, rng.choice([1, 2, 3]) if often else 1, rng.choice([0.0, rng.uniform(0, 0.03)]), who, at_latest)


def strike(spec: TrainSpec, kill: Kill) -> tuple[str, int] | None:
    """Start the training and kill it; return what was under way and the last step in its log, or None when the moment did not come."""
    notes = Path(spec.output) / "notes"
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    path = write_spec(spec)
    path.with_suffix(".order").write_text(json.dumps(dataclasses.asdict(kill)))
    with started("tests.distributed.kills", str(path), 1 if kill.moment == CONVERTING else 2) as ranks:
        codes = [rank.finish()[0] for rank in ranks]
    death = notes / "death"
    if not death.exists():
        assert codes == [0] * len(codes), codes
        return None
    values = json.loads(death.read_text())
    return values["moment"], values["step"]


def outcome(folder: Path, name: str, calm: TrainSpec, spec: TrainSpec) -> str:
    """Finish the training; return what is wrong with the result, or nothing."""
    with started("w2sr.training", str(write_spec(spec))) as ranks:
        ends = [rank.finish() for rank in ranks]
    if [code for code, _ in ends] != [0, 0]:
        return f"{name} did not finish: {ends[0][1][-500:]}"
    one, other = ((Path(each.output) / "model" / "model.safetensors").read_bytes() for each in (calm, spec))
    if one != other:
        return f"{name}: other weights"
    if steps_logged(spec) != list(range(1, STEPS + 1)):
        return f"{name}: metrics of steps {steps_logged(spec)}"
    left = [path.name for path in (folder / name).iterdir() if path.name.startswith((".", "checkpoints"))]
    return f"{name}: left behind {left}" if left else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, folder = random.Random(arguments.seed), arguments.folder
    shape = {"max_steps": STEPS, "checkpoint_every": 2, "min_ranks": 1}
    calm = {stage: make_spec(folder, f"calm{stage}", zero_stage=stage, **shape) for stage in (2, 3)}
    for code, output in train_on_ranks(folder, list(calm.values())):
        assert code == 0, output
    kinds = [(stage, asynchronous) for stage in (2, 3) for asynchronous in (False, True)]
    met: Counter[tuple[str, bool]] = Counter()
    who: Counter[str] = Counter()
    missed = 0
    wrong = []
    for stage, asynchronous in kinds:
        name = f"zero{stage}-{'beside' if asynchronous else 'in-place'}"
        spec = make_spec(folder, name, zero_stage=stage, asynchronous_checkpoints=asynchronous, **shape)
        for kill in plan(rng, arguments.kills // len(kinds)):
            death = strike(spec, kill)
            if death is None:
                missed += 1
                continue
            met[death[0], asynchronous] += 1
            who["both ranks" if kill.rank is None else f"rank {kill.rank}"] += 1
            print(f"{name}: step {death[1]}, {death[0]} (sought: {kill.moment}), {kill.rank}", flush=True)
        problem = outcome(folder, name, calm[stage], spec)
        wrong += [problem] if problem else []
        print(f"{name}: {problem or 'the weights of the calm training'}", flush=True)
    print("\n| under way when the kill came | in place | beside the steps |\n|---|---:|---:|")
    for moment in [*MOMENTS, "between two moments"]:
        print(f"| {moment} | {met[moment, False] or ''} | {met[moment, True] or ''} |")
    struck = ", ".join(f"{number} of {name}" for name, number in sorted(who.items()))
    print(f"\n{met.total()} kills ({struck}); {missed} starts without the moment.")
    print(f"Trainings with other weights than the calm one's, of {len(kinds)}: {len(wrong)} {'; '.join(wrong)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

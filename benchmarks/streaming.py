"""What training beside generation saves: python -m benchmarks.streaming

A teacher at an endpoint on loopback answers 16 questions a second, whatever this machine does, and a student of the quickstart learns from
its traces: stage after stage, and with `overlap: true`. Both have `curate.waves: 8` and end in the same bits. Prints the seconds from the
start of the command to the end of the train stage, the two in turn, and their ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.pipeline.teacher import Teacher
from w2sr.config import load_config
from w2sr.pipeline import run_stages

ROOT = Path(__file__).parents[1]
ROUNDS = 1
STAGES = ("prompts", "generate", "verify", "curate", "train")
SETTINGS = (
    "prompts.num_train=800",
    "prompts.num_selection=4",
    "prompts.num_test=8",
    "teachers.0.model=m",
    "teachers.0.samples_per_prompt=2",
    "teachers.0.pool.replicas=1",
    "generate.flush_interval_s=1",
    "curate.arms=[all]",
    "curate.waves=8",
    "student.model=lab:student-large",
    "train.max_steps=400",  # one pass
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "train.num_ranks=1",
)


def main() -> None:
    """Measure both in turn."""
    found: dict[str, list[float]] = {"stage after stage": [], "side by side": []}
    with tempfile.TemporaryDirectory(prefix="w2b-") as folder, Teacher(0, pause_s=0.25) as teacher:
        threading.Thread(target=teacher.serve_forever, daemon=True).start()
        for number in range(ROUNDS):
            for what, overlap in (("stage after stage", "false"), ("side by side", "true")):
                run_dir = Path(folder) / f"{number}-{overlap}"
                seconds = measure(teacher, run_dir, overlap)
                found[what].append(seconds)
                parts = ", ".join(f"{stage} {own:.0f}" for stage, own in own_seconds(run_dir).items())
                print(f"{what}: {seconds:.0f} s (of their own: {parts})", flush=True)
            digests = {
                json.loads((Path(folder) / f"{number}-{each}/train/all-seed0/manifest.json").read_text())["digest"]
                for each in ("false", "true")
            }
            assert len(digests) == 1, "the students differ"
        teacher.shutdown()
    ratios = [one / other for one, other in zip(*found.values(), strict=True)]
    print(f"ratio: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def measure(teacher: Teacher, run_dir: Path, overlap: str) -> float:
    """Run the stages up to training and return the seconds."""
    engine = f"{{kind: openai, base_url: 'http://127.0.0.1:{teacher.server_port}/v1', max_in_flight: 4}}"
    settings = [f"run_dir={run_dir}", *SETTINGS, f"teachers.0.engine={engine}", f"overlap={overlap}"]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "benchmarks.streaming", *settings], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


def own_seconds(run_dir: Path) -> dict[str, float]:
    """Return the seconds of generation and of training by their manifests."""
    folders = {"generate": "generate/weak", "train": "train/all-seed0"}
    return {stage: json.loads((run_dir / folder / "manifest.json").read_text())["seconds"] for stage, folder in folders.items()}


if __name__ == "__main__":
    if sys.argv[1:]:  # a process of its own for each run, as for a user
        run_stages(load_config(ROOT / "configs" / "quickstart.yaml", sys.argv[1:]), list(STAGES))
    else:
        main()

"""Students that train while their traces are written end in the same bits as those that begin when all traces are there."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import Command, small_run, wait_for
from tests.pipeline.teacher import Teacher
from tests.pipeline.test_pipeline import digests
from w2sr.records import Prompt
from w2sr.tables import read_table
from w2sr.training.early import EARLY

NUM_PROMPTS = 160
WAVES = [
    "curate.waves=4",
    "curate.arms=[all]",
    f"prompts.num_train={NUM_PROMPTS}",
    "train.max_steps=30",
    "train.num_ranks=1",
    "generate.drain_timeout_s=0.5",
    "evaluate.benchmarks=[]",
]
STEPS_OF_WAVE = NUM_PROMPTS // 4 * 2 // 8  # two samples of each prompt, eight rows a step


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher(NUM_PROMPTS) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.release(NUM_PROMPTS)
        server.shutdown()
        thread.join()


def run_with(teacher: Teacher, folder: Path, *overrides: str) -> Command:
    url = f"http://127.0.0.1:{teacher.server_port}/v1"
    engine = f"teachers.0.engine={{kind: openai, base_url: '{url}', max_in_flight: 4, timeout_s: 300}}"
    overridden = [each for each in overrides if each] + ["teachers.0.model=m", engine]
    command = small_run(folder, *WAVES, *overridden)
    command.arguments.remove("teachers.0.engine.batch_size=1")
    return command


def steps(folder: Path) -> int:
    """Return the last step that the student has done; steps since a checkpoint may come again."""
    path = folder / "train" / "all-seed0" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return max((row["step"] for row in rows if "grad_norm" in row), default=0)


def test_interrupted_again_and_again_while_it_streams_it_is_the_same_student(teacher: Teacher, tmp_path: Path) -> None:
    code, output = run_with(teacher, tmp_path / "calm").run()
    assert code == 0, output
    assert steps(tmp_path / "calm") == 30
    teacher.order = {prompt.question: place for place, prompt in enumerate(read_table(tmp_path / "calm/prompts/train.parquet", Prompt))}
    folder = tmp_path / "streamed"
    student = folder / "train" / "all-seed0"

    def interrupt(limit: int, at_step: int, kind: signal.Signals, code: int) -> None:
        teacher.release(limit)
        command = run_with(teacher, folder, "overlap=true")
        process = command.start()
        wait_for(lambda: steps(folder) >= at_step, process)
        time.sleep(1)
        assert not (folder / "generate" / "weak" / "manifest.json").exists(), "it trains while its traces are written"
        assert steps(folder) <= limit * STEPS_OF_WAVE * 4 // NUM_PROMPTS
        process.send_signal(kind)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == code, output
        assert "students train beside their teachers, on 1 ranks, in 4 waves" in output
        assert "begins anew" not in output
        if kind == signal.SIGKILL:
            command.end_orphans()
        else:
            assert "Traceback" not in output
            assert any((student / "checkpoints").iterdir()), "it is saved"
        command.wait_until_gone()

    interrupt(NUM_PROMPTS // 4, 1, signal.SIGINT, 130)
    interrupt(NUM_PROMPTS // 2, 2 * STEPS_OF_WAVE, signal.SIGTERM, 128 + signal.SIGTERM)  # while it waits for the third wave
    interrupt(3 * NUM_PROMPTS // 4, 2 * STEPS_OF_WAVE + 1, signal.SIGKILL, -signal.SIGKILL)
    teacher.release(NUM_PROMPTS)
    code, output = run_with(teacher, folder, "overlap=true").run()
    assert code == 0, output
    assert "begins anew" not in output, "what it was given early is what came out in the end"
    assert digests(folder) == digests(tmp_path / "calm")
    assert not (student / EARLY).exists()
    assert not (folder / "train" / ".waves").exists()

"""Students that train while their traces are written end in the same bits as those that begin when all traces are there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.pipeline.conftest import Command, small_run, wait_for
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


class Teacher(ThreadingHTTPServer):
    """An endpoint that answers as a function of the question, and keeps the questions that stand behind `limit` in `order` waiting."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.order: dict[str, int] = {}
        self.limit = NUM_PROMPTS
        self.released = threading.Condition()

    def release(self, limit: int) -> None:
        with self.released:
            self.limit = limit
            self.released.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"]
        with self.server.released:
            self.server.released.wait_for(lambda: self.server.order.get(question, -1) < self.server.limit)
        number = int(hashlib.sha256(f"{question}{asked.get('seed')}".encode()).hexdigest(), 16)
        text = f"{number % 7} + {number % 5} = {number % 7 + number % 5}. The answer is \\boxed{{{number % 13}}}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        body = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()
        with contextlib.suppress(ConnectionError):  # who asked was ended meanwhile
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher() as server:
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
    assert digests(folder) == digests(tmp_path / "calm")
    assert not (student / EARLY).exists()
    assert not (folder / "train" / ".waves").exists()

"""The pool of grading processes: nothing an answer does costs more than that answer."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2sr.errors import UserError
from w2sr.grading import worker
from w2sr.grading.graders import Question
from w2sr.grading.workers import MEMORY_BYTES, GradingPool

HOSTILE = [
    "(" * 300 + ")" * 300,
    "\x00",
    "\\",
    "\U0001f600" * 200,
    "\\begin{pmatrix}" * 30,
    "+".join(["x"] * 300),
    '__import__("os").system("exit")',
    "nan",
    "\\infty",
]


def math(answer: str, reference: str = "x + 1") -> Question:
    return Question("math", answer, reference)


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool("math", num_workers=2, timeout_s=3.0) as pool:
        yield pool


def test_judgements_come_in_the_order_of_the_questions(pool: GradingPool) -> None:
    questions = [math(f"x + {number % 3}") for number in range(100)]
    assert [judged.verdict == "correct" for judged in pool.judge(questions)] == [number % 3 == 1 for number in range(100)]
    assert pool.judge([]) == []


def test_a_runaway_answer_costs_its_timeout_and_nothing_else(pool: GradingPool) -> None:
    questions = [math("1 + x")] * 20 + [math("9^{9^{9^{9}}}")] + [math("1 + x")] * 20
    began = time.monotonic()
    judged = pool.judge(questions)
    assert judged[20] == ("unverifiable", "timeout")
    assert {row for number, row in enumerate(judged) if number != 20} == {("correct", "match")}
    assert time.monotonic() - began < 30


def test_hostile_answers_neither_hang_nor_crash_nor_pass() -> None:
    with GradingPool("math", num_workers=2, timeout_s=1.0) as pool:
        judged = pool.judge([math(answer) for answer in HOSTILE])
    assert len(judged) == len(HOSTILE)
    assert all(row.verdict != "correct" for row in judged)


def test_a_runaway_answer_does_not_cost_the_imports_again(pool: GradingPool) -> None:
    pool.judge([math("1 + x")] * 40)
    before = [started.process.pid for started in pool._workers]
    assert pool.judge([math("9^{9^{9^{9}}}")])[0].reason == "timeout"
    assert pool.judge([math("1 + x")])[0].reason == "match"
    assert [started.process.pid for started in pool._workers] == before


def test_no_process_outlives_a_pool_that_is_closed_over_a_runaway_answer() -> None:
    pool = GradingPool("math", num_workers=1, timeout_s=60.0)
    with pool:
        pool.judge([math("x")])
        [started] = pool._workers
        started.send([0], [math("9^{9^{9^{9}}}")])
        time.sleep(0.5)
        child = started._child
        assert Path(f"/proc/{child}").exists()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_a_process_that_is_killed_from_outside_loses_one_answer_at_most(pool: GradingPool) -> None:
    pool.judge([math("x")] * 40)
    for process in [started.process for started in pool._workers]:
        process.kill()
        process.wait()
    judged = pool.judge([math("1 + x")] * 100)
    assert [row.reason for row in judged].count("crashed") <= 2
    assert [row.reason for row in judged].count("match") >= 98


def test_too_little_memory_costs_the_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def eat(*_: object) -> None:
        raise MemoryError

    assert worker.judge(["math", "1 + x", "x + 1"]) == ("correct", "match")
    monkeypatch.setattr("w2sr.grading.graders.judge_math", eat)
    assert worker.judge(["math", "1 + x", "x + 1"]) == ("unverifiable", "memory")


def test_a_process_that_cannot_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with GradingPool("math", 2, 1.0) as pool, pytest.raises(UserError, match=r"verify.grader='math' could not start: exit code 1"):
        pool.judge([math("x")] * 40)


def test_a_start_that_is_killed_is_tried_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho x >> "$0.starts"\nkill -9 $$\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with GradingPool("math", 1, 1.0) as pool, pytest.raises(UserError, match="could not start: exit code -9"):
        pool.judge([math("x")])
    assert Path(f"{program}.starts").read_text().count("x") == 3


def test_a_process_has_a_memory_limit_and_ends_with_its_pool() -> None:
    with GradingPool("math", num_workers=1, timeout_s=5.0) as pool:
        pool.judge([math("x")])
        [process] = [started.process for started in pool._workers]
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert f"Max address space         {MEMORY_BYTES}" in limits
    assert process.returncode is not None

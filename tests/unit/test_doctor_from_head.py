"""How long the doctor on a head may take before it is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import doctor, doctor_job
from launcher.cli import main


def test_the_wait_for_the_head_holds_every_question_and_the_measurement_of_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Sequence[str], float]] = []

    def examine(_: Any, words: Sequence[str], timeout_s: float, __: Callable[[str], None]) -> dict[str, Any]:
        asked.append((words, timeout_s))
        return {"exit_code": 0, "findings": []}

    monkeypatch.setattr(doctor, "_cluster", lambda _: SimpleNamespace(file=SimpleNamespace(kind="ssh")))
    monkeypatch.setattr(doctor_job, "examine_from_head", examine)
    assert main(["doctor", "--cluster", "mine", "--timeout", "2"]) == 0
    assert asked == [(["--timeout", "2.0"], 15 * 2 + 180)]

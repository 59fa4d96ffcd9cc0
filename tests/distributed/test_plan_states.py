"""The model states that plan predicts, against every tensor that two real DeepSpeed ranks hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import started
from tests.tiny import make_tiny_model
from w2sr.planning.layout import layout_of
from w2sr.planning.shapes import shape_of
from w2sr.planning.states import model_states
from w2sr.training.config import TrainConfig

VALUES: dict[str, Any] = {"num_ranks": 2, "max_steps": 2, "global_batch_size": 4, "micro_batch_size": 1, "max_length": 32}
CASES: dict[str, dict[str, Any]] = {
    f"zero{stage}-{precision}": {"zero_stage": stage, "precision": precision}
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    if (stage, precision) != (0, "bf16")
}
CASES["zero2-decay"] = {"zero_stage": 2, "precision": "bf16", "optimizer": {"weight_decay": 0.1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    make_tiny_model(folder / "model", hidden_size=36, num_layers=3)
    path = folder / "asked.json"
    path.write_text(json.dumps({"model": str(folder / "model"), "trainings": {name: VALUES | case for name, case in CASES.items()}}))
    with started("tests.distributed.states_of_ranks", str(path)) as ranks:
        for code, output in [rank.finish() for rank in ranks]:
            assert code == 0, output
    return folder


@pytest.mark.parametrize("name", CASES)
def test_predicted_states_are_the_tensors_of_a_real_rank(folder: Path, name: str) -> None:
    shape = shape_of("tiny", folder / "model")
    states = model_states(shape, layout_of(TrainConfig.model_validate(VALUES | CASES[name]), shape))
    held = json.loads((folder / "asked.bytes").read_text())[name]
    # ZeRO-3 keeps its bucket; the others free it, stage 1 only at the end of a step.
    buckets = states.buffers if held > states.buffers > 0 else 0
    beyond = held - (states.weights + states.gradients + states.optimizer + buckets)
    # AdamW's counters of steps, the inputs, and one gradient that lies across the border of two shards.
    assert 0 <= beyond < 2000, f"{held} bytes held, {held - beyond} predicted"

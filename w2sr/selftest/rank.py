"""What a rank of the selftest does: `python -m w2sr.selftest.rank ASKED.json`; RANK and WORLD_SIZE say who it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from w2sr.training.engine import Engine
    from w2sr.training.objective import Objective
    from w2sr.training.spec import TrainSpec


def main(path: Path) -> None:
    """Do what the file asks: trainings one after another, and on one rank the comparison of layouts."""
    from w2sr.training.dist import leave_group
    from w2sr.training.loop import train_each
    from w2sr.training.spec import TrainSpec

    asked = json.loads(path.read_text(encoding="utf-8"))
    for each in asked["layouts"]:
        spec = TrainSpec.from_json(each["spec"], str(path))
        found = compare_layouts(spec)
        Path(each["result"]).write_text(json.dumps(found), encoding="utf-8")
    train_each(asked["trainings"])
    leave_group()


def compare_layouts(spec: TrainSpec) -> dict[str, float]:
    """Return loss and gradient differences between the rows of `spec` one a sequence, and packed; by the trainer's engine and loss."""
    import torch

    from w2sr.packing import attention
    from w2sr.packing.pack import collate
    from w2sr.training.data import load_rows
    from w2sr.training.dist import join_group
    from w2sr.training.engine import Engine
    from w2sr.training.objective import Objective

    group = join_group(spec.train.use_gpu)
    rows = load_rows(Path(spec.rows))
    objective = Objective(spec, group)
    engine = Engine(spec.train, spec.model, group, objective.prepare)
    config = engine.module.config
    pad_id = int(getattr(config, "pad_token_id", None) or 0)
    sequences = shared(rows.lengths.tolist(), spec.train.max_length)
    num_sequences = len(sequences)
    if attention.takes_one_sequence(config):
        sequences = [np.concatenate(sequences)]
    single = [np.array([number]) for number in range(len(rows))]
    padded = _gradient(engine, objective, [collate(rows, [row], pad_id, packed=False) for row in single])
    packed = _gradient(engine, objective, [collate(rows, [sequence], pad_id, packed=True) for sequence in sequences])
    engine.close()
    apart = sum(float((packed[1][name] - each).square().sum()) for name, each in padded[1].items())
    size = sum(float(each.square().sum()) for each in padded[1].values())
    torch.cuda.empty_cache()
    return {
        "loss": abs(padded[0] - packed[0]) / max(abs(padded[0]), 1e-30),
        "gradient": (apart / size) ** 0.5 if size else float("nan"),
        "sequences": float(num_sequences),
        "rows": float(len(rows)),
    }


def shared(lengths: list[int], capacity: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Return row numbers of sequences of at most `capacity` tokens, the rows in their order."""
    found: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        if length > room:
            found.append([])
            room = capacity
        found[-1].append(number)
        room -= length
    return [np.array(members) for members in found]


def _gradient(engine: Engine, objective: Objective, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the summed loss of `batches` and its gradient, in fp64, without a step of the optimizer."""
    for parameter in engine.module.parameters():
        parameter.grad = None
    objective.begin_step(0, 1)
    total = 0.0
    for batch in batches:
        loss = objective.loss(engine, batch)
        total += float(loss.total.detach().double())
        engine.backward(loss.total, last=False)
    found = {name: each.grad.detach().double().cpu() for name, each in engine.module.named_parameters() if each.grad is not None}
    return total, found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

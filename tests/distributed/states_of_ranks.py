"""What a rank of test_plan_states does: train by every ZeRO stage, and write down the most bytes of tensors it has between passes."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Return every tensor's storage in this process, by address; gradients are reached through their parameters.

    Whoever keeps them keeps their addresses from being given to other tensors.
    """
    import torch

    found: dict[int, torch.UntypedStorage] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes deprecated proxies
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.device.type == "cpu"]
    for tensor in tensors:
        for each in (tensor, tensor.grad if tensor.is_leaf else None):
            if each is not None:
                found[each.untyped_storage().data_ptr()] = each.untyped_storage()
    return found


def main(path: str) -> None:
    import torch

    from w2sr.training.config import TrainConfig
    from w2sr.training.dist import join_group, leave_group
    from w2sr.training.engine import Engine

    asked = json.loads(Path(path).read_text())
    group = join_group(use_gpu=False)
    found: dict[str, int] = {}
    for name, values in asked["trainings"].items():
        gc.collect()
        before = live_storages()
        engine = Engine(TrainConfig.model_validate(values), asked["model"], group, lambda _: None)
        ids = torch.arange(8, 24)[None]
        for step in range(2):
            for last in (False, True):
                loss = engine.forward(ids, None).float().sum() * 1e-3
                engine.backward(loss, last)
                del loss
                gc.collect()
                held = sum(storage.nbytes() for place, storage in live_storages().items() if place not in before)
                found[name] = max(found.get(name, 0), held)
            if step == 0:
                engine.step(1e-4)
                found.pop(name)  # the moments come with the first step
        engine.close()
        del engine
    if group.rank == 0:
        Path(path).with_suffix(".bytes").write_text(json.dumps(found))
    leave_group()


if __name__ == "__main__":
    main(sys.argv[1])

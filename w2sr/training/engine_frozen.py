"""The base model beside the student, for losses that compare the two: frozen, and under ZeRO-3 sharded like the student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from w2sr.packing import attention
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.dist import Group
from w2sr.training.engine import import_deepspeed
from w2sr.training.engine_loading import gathered, load_model

if TYPE_CHECKING:
    import torch

    from w2sr.training.fused import Projection

_ZERO = ("stage", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "offload_param")
_SAME = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print", "bf16", "fp16")


class Frozen:
    """The model in `folder` in the precision of the training, without gradients or optimizer; all ranks call its methods together.

    Whole on every rank under ZeRO 0 to 2 (2 bytes a parameter in 16 bits), 1/ranks of that under ZeRO-3, where the shards wait where the
    student's do (train.memory.offload_parameters).
    """

    def __init__(self, train: TrainConfig, folder: str, group: Group) -> None:
        from w2sr.training.head import attach

        on_gpu = group.device.type == "cuda"
        deepspeed = import_deepspeed(on_gpu)
        full = deepspeed_config(train, group.world_size, on_gpu)
        zero = {key: value for key, value in full["zero_optimization"].items() if key in _ZERO}
        config = {key: full[key] for key in _SAME if key in full} | {"zero_optimization": zero}
        model = load_model(folder, train.precision, config, half_on_gpu=on_gpu and train.precision != "fp32")
        self._head = attach(model)
        self._model = model.requires_grad_(False).eval()
        self._engine: Any = None
        if train.zero_stage == 3:
            self._engine = deepspeed.initialize(model=model, config=config)[0]
            self._engine.eval()
        else:
            model.to(group.device)

    @contextmanager
    def states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, positions: torch.Tensor, as_logits: bool
    ) -> Iterator[tuple[torch.Tensor, Projection]]:
        """Yield what the base has to say at `positions` [tokens] of the flattened input, and how it becomes logits, for use inside.

        `as_logits`: whole logits; else hidden states, and inside the weight of the head is gathered.
        """
        import torch

        from w2sr.training.fused import Projection
        from w2sr.training.head import HiddenStates

        asked: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        if position_ids is not None and self._model.config._attn_implementation == attention.NAME:
            asked["cu_seq_lens_q"] = attention.row_ends(position_ids)
        run = self._engine or self._model
        head = None if as_logits else self._head
        with torch.no_grad():
            found = run(**asked).logits if head is None else run(**asked, supervised=HiddenStates())
            picked = found.flatten(0, 1).index_select(0, positions)
        if head is None:
            yield picked, Projection(None)
            return
        with gathered([tensor for tensor in (head.module.weight, head.module.bias) if tensor is not None]):
            yield picked, head.projection

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        if self._engine is not None:
            self._engine.destroy()

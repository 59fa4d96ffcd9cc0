"""The one door to DeepSpeed: configuration, sharded loading, one optimizer step, saving and gathering.

Gradient algebra: DeepSpeed averages gradients over ranks and, with its own accumulation counter, over micro-batches. Its counter is held
at 1 and the boundary is set by hand, so a step is the plain sum over micro-batches of the mean over ranks; the loss carries the rest
(see loss.py). tests/distributed proves that for stages 0 to 3 against plain AdamW in one process.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.packing import attention
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.dist import Group
from w2sr.training.optimizer import parameter_groups
from w2sr.training.writing import Writer

if TYPE_CHECKING:
    import torch

UNIVERSAL_VERSION = 0.2  # nothing is sharded by tensor parallelism, which is what later versions add to


class Engine:
    """A model under DeepSpeed on this rank. Needs an initialised process group; `close()` frees what DeepSpeed keeps globally.

    `prepare` changes the model before DeepSpeed takes it. `universal`: `load` will be given a checkpoint in universal form.
    """

    def __init__(
        self, train: TrainConfig, model_folder: str, group: Group, prepare: Callable[[Any], None], universal: bool = False
    ) -> None:
        device = group.device
        deepspeed = import_deepspeed(on_gpu=device.type == "cuda")
        self.train = train
        self.device = device
        self._universal = universal
        config = deepspeed_config(train, group.world_size, on_gpu=device.type == "cuda", universal=universal)
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
        model = _load_model(train, model_folder, config)
        prepare(model)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        self._engine = deepspeed.initialize(model=model, model_parameters=parameter_groups(train, model), config=config)[0]

    @property
    def module(self) -> Any:
        """The transformers model; under ZeRO-3 its parameters are partitioned."""
        return self._engine.module

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Return logits [sequences, tokens, vocabulary] in the training precision. All ranks call it together (ZeRO-3 gathers)."""
        logits: torch.Tensor = self.run(input_ids, position_ids).logits
        return logits

    def run(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, **asked: Any) -> Any:
        """Return what the model's forward pass gives; `asked`: what else it is told (head.py). All ranks call it together."""
        return self._engine(input_ids=input_ids, position_ids=position_ids, use_cache=False, **self.rows(position_ids), **asked)

    def rows(self, position_ids: torch.Tensor | None) -> dict[str, Any]:
        """Return what the model needs to know of where packed rows end, beside their `position_ids` [1, tokens]."""
        if position_ids is None or self.module.config._attn_implementation != attention.NAME:
            return {}
        return {"cu_seq_lens_q": attention.row_ends(position_ids)}

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of `loss`; `last` marks the last micro-batch of the optimizer step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Update the weights and return the gradient norm before clipping; when it is not finite the weights stay as they are."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._norm_without_zero() if self.train.zero_stage == 0 else None
        if norm is not None and not norm < float("inf"):
            return norm
        self._engine.step()
        if getattr(self._engine.optimizer, "overflow", False):
            return float("nan")
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def _norm_without_zero(self) -> float:
        import torch

        grads = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off, and gradients, for a forward pass."""
        import torch

        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train()

    def save(self, folder: Path, tag: str, writer: Writer) -> None:
        """Give weights and optimizer state, as files under folder/tag, to `writer`; collective."""
        files = self._engine.checkpoint_engine
        files.save = lambda state_dict, path: writer.write(state_dict, Path(path))
        files.preserves_storage_sharing = lambda: not writer.copies
        # The conversion of ZeRO 1 and 2 to the universal form refuses checkpoints without this.
        state = {"universal_checkpoint_info": {"universal_checkpoint_version": UNIVERSAL_VERSION}}
        self._engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Load what `save` wrote, on the same number of ranks or without ZeRO, or its universal form; collective."""
        path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found no checkpoint {tag} in {folder}"
        if self._universal:
            # ZeRO-3 gives all its sub-groups one step counter, which AdamW would then count up once for each of them.
            for state in self._engine.optimizer.optimizer.state.values():
                state["step"] = copy.deepcopy(state["step"])

    def gathered_state(self, on_this_rank: bool) -> dict[str, torch.Tensor]:
        """Return the full weights on the CPU where `on_this_rank`, one parameter gathered at a time; collective under ZeRO-3.

        Tied parameters appear once, as in `named_parameters`; the model's own save and load tie them again.
        """
        state: dict[str, torch.Tensor] = {}
        for name, tensor in [*self.module.named_parameters(), *_saved_buffers(self.module)]:
            with self._whole([tensor]):
                if on_this_rank:
                    state[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return state

    @contextmanager
    def _whole(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
        if not partitioned:
            yield
            return
        deepspeed = import_deepspeed(on_gpu=self.device.type == "cuda")
        with deepspeed.zero.GatheredParameters(partitioned):
            yield

    def close(self) -> None:
        """Release hooks and buffers, so that another model can be trained in this process."""
        self._engine.destroy()


def convert_to_universal(source: Path, target: Path, num_processes: int) -> None:
    """Write the universal form of the ZeRO checkpoint folder `source` to `target`, which need not exist. Prints; forks its workers."""
    import_deepspeed(on_gpu=False)
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=num_processes,
            num_merge_workers=num_processes,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
    )


def _saved_buffers(module: Any) -> list[tuple[str, torch.Tensor]]:
    names = set(module.state_dict().keys())
    return [(name, buffer) for name, buffer in module.named_buffers() if name in names]


def _load_model(train: TrainConfig, folder: str, config: dict[str, Any]) -> Any:
    """Load the model; under ZeRO-3 each rank keeps only its shard, parameter by parameter (transformers' zero.Init)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import deepspeed as integration

    # transformers looks at a global (weak) reference to this object while it loads; it must not outlive the loading, or every later
    # from_pretrained in this process would shard too.
    sharded = integration.HfDeepSpeedConfig(config) if train.zero_stage == 3 else None
    attention.register()
    chosen = attention.attention_for(AutoConfig.from_pretrained(folder), half_on_gpu=train.use_gpu and train.precision != "fp32")
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=chosen)
    finally:
        integration.unset_hf_deepspeed_config()
        del sharded


def import_deepspeed(on_gpu: bool) -> Any:
    """Return the deepspeed module, quiet, and without the operation that it would compile on a CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    # DeepSpeed calls collectives by names that torch deprecated, once each and on every rank.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not on_gpu:
        # On CPU DeepSpeed compiles an all-reduce for inference with g++ (20 s, two ranks at once); training never calls it.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed

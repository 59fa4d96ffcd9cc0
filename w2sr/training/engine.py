"""The one door to DeepSpeed: configuration, sharded loading, one optimizer step, saving and gathering.

Gradient algebra: DeepSpeed averages gradients over ranks and, with its own accumulation counter, over micro-batches. Its counter is held
at 1 and the boundary is set by hand, so a step is the plain sum over micro-batches of the mean over ranks; the loss carries the rest
(loop.py). tests/distributed proves that for stages 0 to 3 against plain AdamW in one process.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.errors import UserError
from w2sr.packing import attention
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.dist import Group
from w2sr.training.engine_loading import load_model, reloaded, torch_dtype
from w2sr.training.engine_lora import adapter_weights, add_adapters
from w2sr.training.engine_sequence import SharedSequences
from w2sr.training.engine_shards import Shard, publish, shards_of
from w2sr.training.engine_weights import Published, published, shards_that_differ, whole
from w2sr.training.optimizer import parameter_groups, set_learning_rate
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
        on_gpu = device.type == "cuda"
        config = self._config = deepspeed_config(train, group.world_size, on_gpu, universal)
        check_values(config)
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
        if train.precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
            raise UserError("train.precision=fp16: this device has no kernels for it; use bf16, or fp32")
        if train.memory.nvme_path is not None and train.memory.uses_nvme:
            check_nvme(Path(train.memory.nvme_path))
        model = load_model(model_folder, train.precision, config, half_on_gpu=on_gpu and train.precision != "fp32")
        if train.lora is not None:
            add_adapters(model, train.lora)
        prepare(model)
        self._sequences = SharedSequences(model, group) if group.sequence_size > 1 else None
        self.overflowed = False  # in the last step, under a loss scale that has been lowered since
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        if train.memory.compile:
            model.compile(dynamic=True)  # micro-batches have many lengths
        self._engine = deepspeed.initialize(model=model, model_parameters=parameter_groups(train, model), config=config)[0]
        if train.precision == "fp16":
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # we stop then, and name the rows

    @property
    def module(self) -> Any:
        """The transformers model; under ZeRO-3 its parameters are partitioned."""
        return self._engine.module

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Return logits [sequences, tokens, vocabulary] in the training precision. All ranks call it together (ZeRO-3 gathers)."""
        logits: torch.Tensor = self.run(input_ids, position_ids).logits
        return logits

    def run(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, **asked: Any) -> Any:
        """Return what the model's forward pass gives; `asked`: what else it is told (head.py). All ranks call it together.

        Ranks that share sequences pass all of one, with its positions, and each gets the result of its tokens; without positions every
        rank computes the whole.
        """
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if self._sequences is not None and position_ids is not None:
            inputs, position_ids = self._sequences.shared(input_ids, position_ids)
        with self._saving():
            return self._engine(**inputs, use_cache=False, **self.rows(position_ids), **asked)

    def _saving(self) -> AbstractContextManager[Any]:
        if not self.train.memory.offload_activations:
            return nullcontext()
        from w2sr.training.engine_activations import InHostMemory

        return InHostMemory(pin_memory=self.train.memory.pin_memory and self.device.type == "cuda")

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
        set_learning_rate(self.train, self._engine.optimizer.param_groups, learning_rate)
        norm = self._norm_without_zero() if self.train.zero_stage == 0 else None
        if norm is not None and not norm < float("inf"):
            return norm
        optimizer, self.overflowed = self._engine.optimizer, False
        scale = optimizer.loss_scale if self.train.precision == "fp16" else 1.0
        self._engine.step()
        if getattr(optimizer, "overflow", False):
            self.overflowed = self.train.precision == "fp16" and optimizer.loss_scale < scale
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
        groups = self._engine.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name not in ("params", "step")} for group in groups]
        path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found no checkpoint {tag} in {folder}"
        if self._universal:
            # ZeRO-3 gives all groups the settings of the first one: norms would decay.
            for group, kept in zip(self._engine.optimizer.param_groups, settings, strict=True):
                group.update(kept)
            # ZeRO-3 gives all its sub-groups one step counter, which AdamW would then count up once for each of them.
            for state in self._engine.optimizer.optimizer.state.values():
                state["step"] = copy.deepcopy(state["step"])

    def published(self) -> dict[str, Published]:
        """Return what the finished model consists of, by name."""
        return published(self.module)

    def whole(self, tensor: Published, precision: str, wanted: bool) -> torch.Tensor | None:
        """Return a tensor of the finished model on the CPU where it is `wanted`; collective. fp32 after 16 bits: the master weights."""
        return whole(tensor, precision, precision == "fp32" != self.train.precision, wanted)

    def adapters(self, wanted: bool) -> dict[str, torch.Tensor]:
        """Return the adapters of train.lora on the CPU where they are `wanted`; collective under ZeRO-3."""
        return adapter_weights(self.module, wanted) if self.train.lora is not None else {}

    @contextmanager
    def reloaded(self, folder: Path, precision: str) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], list[str]]]:
        """Yield the forward pass (ids to logits) of the model exported to `folder` in `precision`, and which weights it has wrong here.

        Under ZeRO-3 it is sharded, and every rank calls it.
        """
        with reloaded(folder, torch_dtype(self.train.precision), self._config, self.device) as (model, run):
            yield run, shards_that_differ(self.module, model, precision)

    def shards(self) -> list[Shard]:
        """Return this rank's part of the trainable weights in fp32, as live memory. Not to be kept over `load`."""
        return shards_of(self._engine, self.train.zero_stage)

    def publish(self) -> None:
        """Let the model compute with what was written into the shards; collective."""
        publish(self._engine, self.train.zero_stage)

    def close(self) -> None:
        """Release hooks and buffers, so that another model can be trained in this process."""
        if self._sequences is not None:
            self._sequences.close()
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


def check_nvme(folder: Path) -> None:
    """Raise UserError unless states can be offloaded to the disk of `folder` on this machine."""
    from deepspeed.accelerator import get_accelerator

    if not folder.is_dir():
        raise UserError(f"train.memory.nvme_path={folder} is not there on this node; make the folder, on a local disk, on every node")
    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible():
        raise UserError(
            "offload to nvme needs libaio and its headers, which this node lacks: install libaio-dev (Debian) or libaio-devel, or point "
            "CFLAGS and LDFLAGS at them; or offload to cpu"
        )


def check_values(config: dict[str, Any]) -> None:
    """Raise UserError for a value of `zero_optimization` that DeepSpeed cannot take: `train.deepspeed` knows its keys, not their types."""
    from deepspeed.runtime.zero.config import get_zero_config
    from pydantic import ValidationError

    try:
        get_zero_config(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"train.deepspeed: zero_optimization.{key}: {first['msg']} (given: {first['input']!r})") from error


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
        deepspeed.runtime.compiler.compile = lambda: lambda function: function  # Muon's kernels: 20 s of g++ again
    return deepspeed

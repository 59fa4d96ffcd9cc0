"""How a training is spread over devices: everything that decides what one of them must hold."""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.planning.shapes import ModelShape
from w2sr.training.batches import batch_plan
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import BUCKET_ELEMENTS, PERSISTENT_ELEMENTS
from w2sr.training.memory_config import Place

HALF = ("bf16", "fp16")
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Layout:
    """A micro-batch holds `micro_rows` rows (with packing: sequences) of up to `length` tokens.

    `budget`: tokens of a micro-batch, padding included, that is filled with as many rows as they allow (None: with `micro_rows`).
    `secondary`: ranks that share ZeRO++'s second copy of the weights (1: none). `sequence_parallel`: ranks that share a sequence.
    `masked`: attention needs a mask of tokens x tokens. `whole_logits`: the loss takes all logits at once. `keeps_base`: the weights that
    training started from stay beside the student's. `averages`: fp32 numbers that an average of the weights keeps for each parameter.
    `split_groups`: matrices decay and vectors do not. `lora_rank`: adapters beside the layers `lora_targets` (None: all) are trained in
    place of the model. `bucket`, `persistent`, `live`: elements of DeepSpeed's bucket, of the largest parameter that ZeRO-3 keeps whole,
    and of those that it has whole at a time.
    """

    num_ranks: int
    zero_stage: int
    precision: str
    recompute: bool
    micro_rows: int
    length: int
    budget: int | None = None
    offload_optimizer: Place = "device"
    offload_parameters: Place = "device"
    offload_activations: bool = False
    secondary: int = 1
    sequence_parallel: int = 1
    masked: bool = False
    whole_logits: bool = False
    keeps_base: bool = False
    averages: int = 0
    split_groups: bool = False
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] | None = None
    on_gpu: bool = True
    bucket: int = BUCKET_ELEMENTS
    persistent: int = PERSISTENT_ELEMENTS
    live: int = LIVE_ELEMENTS

    @property
    def micro_tokens(self) -> int:
        """Tokens of a micro-batch on one rank, at most."""
        return self.budget or -(-self.micro_rows * self.length // self.sequence_parallel)

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight in the forward pass."""
        return 2 if self.precision in HALF else 4

    @property
    def dtype(self) -> str:
        """What torch calls the precision."""
        return DTYPES[self.precision]

    def describe(self) -> str:
        """Return the choices in one line, as keys of the configuration."""
        places = {"offload_optimizer": self.offload_optimizer, "offload_parameters": self.offload_parameters}
        parts = [
            f"{self.num_ranks} ranks",
            f"zero_stage={self.zero_stage}",
            f"precision={self.precision}",
            f"gradient_checkpointing={str(self.recompute).lower()}",
            f"micro-batch of {self.micro_rows} x {self.length:,} tokens"
            if self.budget is None
            else f"micro-batch of {self.budget:,} tokens",
            *(f"memory.{key}={place}" for key, place in places.items() if place != "device"),
            *(["memory.offload_activations=true"] if self.offload_activations else []),
            *([f"memory.hpz_partition_size={self.secondary}"] if self.secondary > 1 else []),
            *([f"memory.sequence_parallel={self.sequence_parallel}"] if self.sequence_parallel > 1 else []),
        ]
        return ", ".join(parts)


def layout_of(train: TrainConfig, shape: ModelShape, num_ranks: int | None = None) -> Layout:
    """Return the layout that a configuration asks for, on `num_ranks` ranks (None: train.num_ranks)."""
    from w2sr.packing.attention import PROVEN

    memory, ranks = train.memory, num_ranks or train.num_ranks
    batch = batch_plan(train, max(1, ranks // memory.sequence_parallel))
    zero = train.deepspeed.get("zero_optimization")
    tuned = {key: int(value) for key, value in zero.items() if isinstance(value, (int, float))} if isinstance(zero, dict) else {}
    return Layout(
        num_ranks=ranks,
        zero_stage=train.zero_stage,
        precision=train.precision,
        recompute=train.gradient_checkpointing,
        micro_rows=max(1, batch.micro_tokens // train.max_length),
        length=train.max_length,
        budget=None if train.packing else train.micro_batch_tokens,
        offload_optimizer=memory.offload_optimizer,
        offload_parameters=memory.offload_parameters,
        offload_activations=memory.offload_activations,
        secondary=memory.hpz_partition_size,
        sequence_parallel=memory.sequence_parallel,
        masked=train.packing and shape.model_type not in PROVEN,
        whole_logits=train.loss.kernel == "full",
        keeps_base=train.loss.kl_to_base > 0,
        averages=1 if train.optimizer.average is not None else 0,
        split_groups=train.optimizer.weight_decay > 0 and not train.optimizer.decay_vectors,
        lora_rank=train.lora.rank if train.lora is not None else None,
        lora_targets=tuple(train.lora.targets) if train.lora is not None and train.lora.targets is not None else None,
        on_gpu=train.use_gpu,
        bucket=tuned.get("reduce_bucket_size", BUCKET_ELEMENTS),
        persistent=tuned.get("stage3_param_persistence_threshold", PERSISTENT_ELEMENTS),
        live=tuned.get("stage3_max_live_parameters", LIVE_ELEMENTS),
    )

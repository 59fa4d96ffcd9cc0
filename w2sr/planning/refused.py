"""What a training refuses when it meets the model, refused before it is planned."""

from __future__ import annotations

from w2sr.errors import UserError
from w2sr.packing.attention import PROVEN
from w2sr.planning.layout import HALF
from w2sr.planning.shapes import ModelShape
from w2sr.training.config import TrainConfig


def refuse_what_training_refuses(train: TrainConfig, shape: ModelShape) -> None:
    """Raise UserError for lengths, adapters and shared sequences that the model does not carry."""
    if shape.max_positions is not None and train.max_length > shape.max_positions:
        raise UserError(
            f"train.max_length={train.max_length} is more than the {shape.max_positions} positions of the model; "
            f"set train.max_length to {shape.max_positions} or less"
        )
    if train.lora is not None:
        names = {name for name, _ in shape.linear}
        unknown = sorted(set(train.lora.targets or ()) - names)
        if unknown:
            raise UserError(f"train.lora.targets names {unknown[0]!r}, no linear layer of the model; it has: {', '.join(sorted(names))}")
    size = train.memory.sequence_parallel
    if size == 1:
        return
    if shape.num_heads % size or (shape.num_key_heads % size and size % shape.num_key_heads):
        raise UserError(
            f"memory.sequence_parallel={size} ranks cannot share the {shape.num_heads} attention heads ({shape.num_key_heads} for keys and "
            f"values) of this model; give a divisor of {shape.num_heads}"
        )
    # On GPUs in 16 bits flash attention may be installed, which shares the sequences of any model.
    if shape.model_type not in PROVEN and not (train.use_gpu and train.precision in HALF):
        raise UserError(
            f"memory.sequence_parallel: the attention of {shape.model_type} tells packed rows apart by a mask of all tokens, which ranks "
            "that share a sequence do not make; set it to 1, or train in 16 bits on GPUs with flash-attn"
        )

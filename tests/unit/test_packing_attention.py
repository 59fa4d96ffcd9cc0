"""Attention over packed rows against transformers' own masks, for every architecture that is trusted with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.packed import collate_packed
from w2sr.packing.attention import NAME, PROVEN, attention_for, register, row_ends
from w2sr.packing.rows import Row

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
}
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    "starcoder2": {"sliding_window": 5},
    "phi3": {"sliding_window": 5},
    "qwen2": {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen3": {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "smollm3": {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
}


def model_of(model_type: str, attention: str, **more: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **SIZES | more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def outputs(model: Any, ids: Any, positions: Any, **extra: Any) -> tuple[Any, list[Any]]:
    """Logits, and the gradients of a sum that weighs every one of them differently."""
    import torch

    logits = model(input_ids=ids, position_ids=positions, use_cache=False, **extra).logits
    torch.manual_seed(2)
    (logits * torch.randn_like(logits)).sum().backward()
    return logits.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("model_type", "windowed"), [(name, False) for name in sorted(PROVEN)] + [(name, True) for name in sorted(WINDOWS)]
)
def test_rows_end_to_end_are_what_the_masks_of_transformers_give(model_type: str, windowed: bool) -> None:
    import torch

    register()
    rng = np.random.default_rng(0)
    rows = [Row(str(n), "p", tuple(int(i) for i in rng.integers(1, 50, length)), 1) for n, length in enumerate((7, 12, 3, 9))]
    batch = collate_packed(rows, 0, 64, flatten=True)
    assert batch.position_ids is not None
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    more = WINDOWS[model_type] if windowed else {}
    expected, gradients = outputs(model_of(model_type, "sdpa", **more), ids, positions)
    found, ours = outputs(model_of(model_type, NAME, **more), ids, positions, cu_seq_lens_q=row_ends(positions))
    assert torch.allclose(found, expected, atol=1e-9)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(ours, gradients, strict=True))


def test_without_rows_each_sequence_of_a_batch_is_a_row() -> None:
    import torch

    register()
    ids = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    expected, _ = outputs(model_of("llama", "sdpa"), ids, None)
    found, _ = outputs(model_of("llama", NAME), ids, None)
    assert torch.allclose(found, expected, atol=1e-9)


def test_other_architectures_keep_what_transformers_chooses() -> None:
    from transformers import AutoConfig

    assert attention_for(AutoConfig.for_model("llama"), half_on_gpu=False) == NAME
    assert attention_for(AutoConfig.for_model("gemma2"), half_on_gpu=False) is None, "its scores are capped"
    assert attention_for(AutoConfig.for_model("mamba2"), half_on_gpu=False) is None, "its convolution mixes tokens"

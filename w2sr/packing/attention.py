"""Attention over rows that lie end to end: each attends to itself alone, and nothing is computed across rows.

transformers' sdpa builds a mask of tokens x tokens for such a sequence and computes all of it: with rows of 200 tokens in a sequence of
1,024 four fifths of that work is thrown away. Here each row goes through PyTorch's causal kernel on its own. Flash attention does the same
on GPUs and is taken where it is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "w2sr_rows"

# Architectures whose attention is a softmax of scaled products, causal or in a causal window, and whose layers mix tokens nowhere else.
# tests/unit/test_packing_attention.py compares each with transformers' own masks; others keep what transformers chooses.
PROVEN = frozenset({"gemma", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"})


def attention_for(config: Any, half_on_gpu: bool) -> str | None:
    """Return the attention that a model of this transformers `config` is trained with; None: what transformers chooses.

    `half_on_gpu`: it is trained in 16 bits on a GPU, which flash attention needs.
    """
    from transformers.utils import is_flash_attn_2_available

    if half_on_gpu and is_flash_attn_2_available():
        return "flash_attention_2"
    return NAME if config.model_type in PROVEN else None


def takes_one_sequence(config: Any) -> bool:
    """Return whether a model of this `config` wants packed rows in one sequence: those that tell rows apart without a mask."""
    return str(config._attn_implementation).startswith((NAME, "flash"))


def register() -> None:
    """Make NAME known to transformers as an implementation of attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def row_ends(position_ids: torch.Tensor) -> torch.Tensor:
    """Return 0 and the end of each row of `position_ids` [1, tokens], which restart at 0 with each row: [rows + 1], int32, on the CPU."""
    import torch

    starts = torch.nonzero(position_ids[0].cpu() == 0).flatten()
    return torch.cat([starts, starts.new_tensor([position_ids.shape[1]])]).to(torch.int32)


def attend(
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within rows, [sequences, tokens, heads, size]; transformers' signature.

    `query` [sequences, heads, tokens, size], `key` and `value` with as many heads or a divisor of it. `cu_seq_lens_q` (`row_ends`) cuts the
    one sequence into rows; without it each sequence is a row. A token sees the last `sliding_window` tokens, itself included (None: all).
    """
    import torch

    assert attention_mask is None, "rows are told apart by cu_seq_lens_q, not by a mask"
    assert others.get("softcap") is None, "PROVEN names no architecture that caps its scores"
    shared = query.shape[1] != key.shape[1]
    lengths = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    window = sliding_window or max(lengths)
    parts = []
    for one, other, third in zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True):
        mask = _band(one.shape[2], window, one.device) if one.shape[2] > window else None
        part = torch.nn.functional.scaled_dot_product_attention(
            one, other, third, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None, enable_gqa=shared
        )
        parts.append(part)
    output = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return output.transpose(1, 2).contiguous(), None


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    import torch

    places = torch.arange(length, device=device)
    behind = places[:, None] - places[None, :]
    return (behind >= 0) & (behind < window)

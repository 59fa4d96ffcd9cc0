"""Several ranks share each sequence: DeepSpeed's Ulysses (Jacobs et al. 2023, arXiv 2309.14509) around the attention of ours.

Each rank runs the model on its part of the tokens. Inside attention an all-to-all gives it all the tokens of its part of the heads, and a
second one gives the tokens back. A rank's loss is that of its tokens; its gradients are a summand like any data-parallel rank's, so nothing
about averaging changes, and DeepSpeed need not be told. Labels are shifted before the tokens are dealt (objective.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from w2sr.errors import UserError
from w2sr.packing import attention
from w2sr.training.dist import Group

if TYPE_CHECKING:
    import torch

SHARED = "sequence_is_shared"


class SharedSequences:
    """Deals the tokens of one packed sequence to the ranks of this rank's sequence group, and makes `model` attend over all of them.

    Raises UserError for a model whose heads the ranks cannot share, or whose attention tells packed rows apart by a mask.
    """

    def __init__(self, model: Any, group: Group) -> None:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        config = model.config.get_text_config()
        size = group.sequence_size
        heads, shared_heads = config.num_attention_heads, config.num_key_value_heads
        if heads % size or (shared_heads % size and size % shared_heads):
            raise UserError(
                f"memory.sequence_parallel={size} ranks cannot share the {heads} attention heads ({shared_heads} for keys and values) of "
                f"this model; give a divisor of {heads}"
            )
        if not attention.takes_one_sequence(model.config):
            raise UserError(
                f"memory.sequence_parallel: the attention of {model.config.model_type} tells packed rows apart by a mask of all tokens, "
                "which ranks that share a sequence do not make; set it to 1, or install flash-attn"
            )
        self._group = group
        self._ranks = group.sequence_ranks()
        self._name = str(model.config._attn_implementation)
        self._plain = ALL_ATTENTION_FUNCTIONS[self._name]
        self._ulysses = UlyssesSPAttentionHF(
            attn=self._plain,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_head_count=shared_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=self._ranks,
            seq_length_is_variable=True,
        )
        self._ulysses.core_attn_implementation = self._name
        # transformers takes other branches by the name of an implementation, so the name stays and the function changes.
        ALL_ATTENTION_FUNCTIONS[self._name] = self._attend

    def _attend(self, module: Any, query: torch.Tensor, *others: Any, **options: Any) -> Any:
        run = self._ulysses if options.pop(SHARED, False) else self._plain
        return run(module, query, *others, **options)

    def shared(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
        """Return this rank's inputs from those of the whole sequence, both [1, tokens], and the whole sequence's positions, padded."""
        import torch

        assert input_ids.shape[0] == 1, "ranks share one packed sequence at a time"
        num_tokens = input_ids.shape[1]
        start, stop = self._group.own_range(num_tokens)
        padding = (0, (stop - start) * self._group.sequence_size - num_tokens)  # a row of its own for each token of it
        input_ids, position_ids = (torch.nn.functional.pad(tensor, padding) for tensor in (input_ids, position_ids))
        own = {"input_ids": input_ids[:, start:stop], "position_ids": position_ids[:, start:stop].contiguous(), SHARED: True}
        return own, position_ids

    def close(self) -> None:
        """Give transformers its attention back."""
        import torch.distributed as dist
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS[self._name] = self._plain
        dist.destroy_process_group(self._ranks)

"""Models on torch's meta device: their own code runs, on tensors that have sizes but no bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from w2sr.errors import UserError

NAME = "w2sr_plan"


def meta_model(name: str, values: dict[str, Any], dtype: str = "bfloat16", **changes: Any) -> Any:
    """Return the transformers model of a config.json's `values`, some of them changed, on the meta device.

    Its attention keeps what a fused kernel keeps, and computes nothing. Raises UserError when transformers cannot build it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _register()
    try:
        config = AutoConfig.for_model(**{"model_type": "", **values, **changes})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=NAME)
        model.tie_weights()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model {name!r}: transformers cannot build model_type={values.get('model_type')!r} from its config.json ({line}); "
            "check the file, or the version of transformers that the model needs"
        ) from error
    return model


@lru_cache(maxsize=1)
def _register() -> None:
    """Make NAME known to transformers."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, query: Any, key: Any, value: Any) -> Any:
            output = torch.empty_like(query)
            statistics = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
            context.save_for_backward(query, key, value, output, statistics)
            return output

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:  # noqa: ARG004
            query, key, value, _, _ = context.saved_tensors
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **others: Any) -> Any:  # noqa: ARG001
        return Fused.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[no-untyped-call]

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)

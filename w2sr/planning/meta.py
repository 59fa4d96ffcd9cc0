"""Models on torch's meta device: their own code runs, on tensors that have sizes but no bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from w2sr.errors import UserError

NAME = "w2sr_plan"
# What the code of models raises over values that it does not expect.
FOREIGN = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def explained(name: str, what: str, advice: str) -> Iterator[None]:
    """Turn what code that is not ours raises over the config.json of model `name` into a UserError: `what` failed, and what to do."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, *FOREIGN) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"model {name!r}: {what} ({said}); {advice}") from error


def meta_model(name: str, values: dict[str, Any], dtype: str = "bfloat16", **changes: Any) -> Any:
    """Return the transformers model of a config.json's `values`, some of them changed, on the meta device.

    Its attention keeps what a fused kernel keeps, and computes nothing. Raises UserError when transformers cannot build it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _register()
    what = f"transformers cannot build model_type={values.get('model_type')!r} from its config.json"
    with explained(name, what, "check the file, or the version of transformers that the model needs"):
        config = AutoConfig.for_model(**{"model_type": "", **values, **changes})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=NAME)
        model.tie_weights()
    return model


@lru_cache(maxsize=1)
def _register() -> None:
    """Make NAME known to transformers."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, query: Any, key: Any, value: Any) -> Any:
            sequences, heads, tokens, _ = query.shape
            # As kernels lay it out, heads within tokens; a value may be narrower than a query.
            output = query.new_empty(sequences, tokens, heads, value.shape[-1]).transpose(1, 2)
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

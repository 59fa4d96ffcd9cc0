"""What plan says of activations, against tensors that really were saved on the CPU, and against the published closed form."""

from __future__ import annotations

from typing import Any

import pytest

from w2sr.errors import UserError
from w2sr.planning.activations import Activations, activations, live_bytes
from w2sr.planning.layout import Layout
from w2sr.planning.shapes import shape_from
from w2sr.planning.training_memory import head_memory

TOKENS = 96
LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
MODELS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}


def real_model(values: dict[str, Any], precision: str, recompute: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def measured(values: dict[str, Any], precision: str, recompute: bool) -> tuple[int, int]:
    """Return (bytes that autograd saved, the most bytes alive until the end of the backward pass) of a real run of the layers."""
    import torch

    model = real_model(values, precision, recompute)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None))
    inputs = torch.randn(1, TOKENS, values["hidden_size"], dtype=model.dtype, requires_grad=True)
    counter = live_bytes([*model.parameters(), *model.buffers(), inputs])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter:
        output = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        output.backward(torch.ones_like(output))
    # The inputs are an activation too, and the run's own ones like the output are not.
    size = inputs.untyped_storage().nbytes()
    return sum(saved.values()), counter.peak + size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_what_autograd_saves_is_what_was_predicted(name: str, precision: str) -> None:
    saved, _ = measured(MODELS[name], precision, recompute=False)
    predicted = activations(shape_from(name, MODELS[name]), TOKENS, precision, recompute=False)
    assert predicted.kept == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_peak_of_the_backward_pass_is_what_was_predicted(name: str, precision: str, recompute: bool) -> None:
    _, peak = measured(MODELS[name], precision, recompute)
    predicted = activations(shape_from(name, MODELS[name]), TOKENS, precision, recompute)
    assert predicted.kept + predicted.working == pytest.approx(peak, rel=0.005)


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_a_layer_keeps_what_the_closed_form_says(precision: str, width: int) -> None:
    """Korthikanti et al. 2022 (arXiv 2205.05198), section 4, counted for a Llama: RMSNorm in fp32, SwiGLU, grouped queries, no dropout."""
    hidden, inner, queries, keys, heads = 64, 160, 64, 32, 4
    norms = 2 * ((4 + 2 * width) * hidden + 4) if precision == "bf16" else 2 * (3 * 4 * hidden + 4)
    attention = width * (queries + 2 * keys + queries) + 4 * heads  # q, k, v, output, logarithms of sums
    swiglu = width * 4 * inner  # gate, its activation, up, their product
    four, five = (activations(shape_from("llama", {**LLAMA, "num_hidden_layers": n}), TOKENS, precision, False).kept for n in (4, 5))
    assert five - four == TOKENS * (norms + attention + swiglu)


def test_recomputed_layers_keep_their_inputs_alone() -> None:
    four, five = (activations(shape_from("llama", {**LLAMA, "num_hidden_layers": n}), TOKENS, "bf16", True).kept for n in (4, 5))
    assert five - four == TOKENS * 64 * 2


def test_the_allocator_agrees() -> None:
    """What torch's profiler saw being allocated on the CPU, kernels' own workspace included."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    model = real_model(LLAMA, "fp32", recompute=False)
    inputs = torch.randn(1, 4 * TOKENS, 64, requires_grad=True)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        output.backward(torch.ones_like(output))
    sizes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    predicted = activations(shape_from("llama", LLAMA), 4 * TOKENS, "fp32", recompute=False)
    assert predicted.kept + predicted.working == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_is_predicted_from_the_loss_itself(precision: str, whole: bool) -> None:
    import torch

    from w2sr.training.fused import Projection, Supervised, TokenLoss, fused_loss

    values = {**LLAMA, "vocab_size": 50_000}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weight = torch.randn(50_000, 64, dtype=dtype, requires_grad=True)
    hidden = torch.randn(700, 64, dtype=dtype, requires_grad=True)
    places = torch.arange(700)
    counter = live_bytes([weight, hidden])
    with counter:
        asked = Supervised(places.clone(), places.clone(), torch.ones(700), TokenLoss())
        picked = (torch.nn.functional.linear(hidden, weight) if whole else hidden).index_select(0, places)
        fused_loss(picked, Projection(None if whole else weight), asked).backward()
    layout = Layout(1, 2, precision, False, 1, 700, whole_logits=whole)
    predicted = head_memory(shape_from("llama", values), 700, layout)
    assert 0.99 * counter.peak <= predicted <= (1.3 if whole else 1.01) * counter.peak


def test_layers_that_ask_tensors_for_values_are_refused() -> None:
    """Jamba's router looks at the numbers of the experts that it chose, which do not exist on meta tensors."""
    values = {**LLAMA, "model_type": "jamba", "num_hidden_layers": 4, "mamba_d_state": 4, "use_mamba_kernels": False}
    with pytest.raises(UserError, match="cannot be run without values"):
        activations(shape_from("jamba", values), TOKENS, "bf16", recompute=False)


def test_activations_hold_as_tokens_grow() -> None:
    one, two = (activations(shape_from("llama", LLAMA), tokens, "bf16", recompute=True) for tokens in (512, 1024))
    assert isinstance(one, Activations)
    assert two.kept == pytest.approx(2 * one.kept, rel=0.01)
    assert two.working == pytest.approx(2 * one.working, rel=0.1)

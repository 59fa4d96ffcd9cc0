"""The loss from hidden states against transformers' own `model(input_ids, labels=...)`, architecture by architecture."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from tests.alone import Alone, Plain
from tests.packed import collate_packed, collate_padded
from w2sr.errors import UserError
from w2sr.packing.pack import MicroBatch
from w2sr.packing.rows import Row
from w2sr.training import fused
from w2sr.training.config import TrainConfig
from w2sr.training.head import attach, reproduces
from w2sr.training.objective import Objective
from w2sr.training.spec import TrainSpec

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {"tie_word_embeddings": False}),
    "Llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Qwen2": ("Qwen2ForCausalLM", {}),
    "Qwen3": ("Qwen3ForCausalLM", {"head_dim": 8}),
    "Gemma2, capped": ("Gemma2ForCausalLM", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "Gemma3, capped": ("Gemma3ForCausalLM", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "Granite, scaled": ("GraniteForCausalLM", {"logits_scaling": 4.0}),
    "Cohere2, scaled": ("Cohere2ForCausalLM", {"logit_scale": 0.25}),
    "Mistral": ("MistralForCausalLM", {}),
    "Phi3": ("Phi3ForCausalLM", {}),
    "Phi, with a bias": ("PhiForCausalLM", {}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {}),
}


def make_model(name: str, **changes: Any) -> Any:
    class_name, extra = MODELS[name]
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(model_class.config_class(**COMMON | extra | changes)).train()


def make_batch(packed: bool) -> MicroBatch:
    rng = random.Random(0)
    shapes = [(3, 9), (1, 1), (8, 20), (2, 5), (4, 4)]
    rows = [Row(f"e{n}", "p", tuple(rng.randint(3, 60) for _ in range(a + b)), a) for n, (a, b) in enumerate(shapes)]
    return collate_packed(rows, 0, 40, flatten=False) if packed else collate_padded(rows, 0)


def objective(model: Any, **loss: Any) -> Objective:
    train = TrainConfig(max_steps=1, loss=loss)  # type: ignore[arg-type]
    found = Objective(TrainSpec("one", 0, train, "", "", "", ""), Alone(0, 1, torch.device("cpu")))
    found.prepare(model)
    return found


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_transformers(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 7 * COMMON["vocab_size"])
    model, batch = make_model(name), make_batch(packed)
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    positions = None if batch.position_ids is None else torch.from_numpy(batch.position_ids)
    expected = model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
    torch.autograd.backward(expected)
    right = gradients(model)
    found = objective(model, kernel="chunked").loss(Plain(model), batch)  # type: ignore[arg-type]
    torch.autograd.backward(found.total / batch.num_supervised)
    assert found.nll / batch.num_supervised == pytest.approx(expected.item(), rel=1e-5)
    largest = max(gradient.abs().max().item() for gradient in right.values())
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, right[key], rtol=1e-4, atol=1e-5 * largest)


def test_the_models_own_logits_give_the_same_loss() -> None:
    batch, losses = make_batch(packed=True), []
    for kernel in ("chunked", "full"):
        model = make_model("Gemma2, capped")
        losses.append(objective(model, kernel=kernel).loss(Plain(model), batch).nll)  # type: ignore[arg-type]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def run_of(model: Any) -> Any:
    return lambda **asked: model(use_cache=False, **asked)


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_sees_what_a_configuration_does_not_tell(name: str) -> None:
    model = make_model(name).eval()
    head, ids = attach(model), torch.randint(3, 60, (2, 9))
    assert head is not None
    with torch.no_grad():
        assert reproduces(head, run_of(model), ids)
        head.shape = fused.Shape(head.shape.scale * 1.001, head.shape.cap)
        assert not reproduces(head, run_of(model), ids)
        head.shape = fused.Shape(head.shape.scale / 1.001, 40.0)
        assert not reproduces(head, run_of(model), ids)


def test_a_body_whose_last_states_are_not_what_the_head_sees_is_noticed() -> None:
    model = make_model("Llama").eval()
    plain = model.forward

    def scaled(**inputs: Any) -> Any:
        with torch.no_grad():
            handle = model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
            out = plain(**inputs)
            handle.remove()
        return out

    model.forward = scaled
    head = attach(model)
    assert head is not None
    with torch.no_grad():
        assert not reproduces(head, run_of(model), torch.randint(3, 60, (1, 5)))


def test_a_head_that_was_replaced_since_is_noticed() -> None:
    model = make_model("Llama").eval()
    head = attach(model)
    assert head is not None
    model.lm_head = torch.nn.Linear(32, 61, bias=False)
    with torch.no_grad():
        assert not reproduces(head, run_of(model), torch.randint(3, 60, (1, 5)))


class Doubling(torch.nn.Linear):
    """A head that is more than a product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("kernel", ["auto", "chunked"])
def test_a_model_that_cannot_be_reproduced_takes_its_own_logits_or_is_refused(kernel: str) -> None:
    model, batch = make_model("Llama"), make_batch(packed=False)
    model.lm_head = Doubling(32, 61, bias=False)
    assert attach(model) is None
    found, ids, labels = objective(model, kernel=kernel), torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    if kernel == "chunked":
        with pytest.raises(UserError, match=r"kernel=chunked, but the logits of this model \(LlamaForCausalLM\).*auto"):
            found.loss(Plain(model), batch)  # type: ignore[arg-type]
        return
    expected = model(input_ids=ids, labels=labels).loss.item()
    assert found.loss(Plain(model), batch).nll / batch.num_supervised == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_the_selection_is_judged_by_the_plain_nll_whatever_is_minimised() -> None:
    model, batch = make_model("Llama"), make_batch(packed=True)
    weighed = MicroBatch(batch.input_ids, batch.labels, batch.position_ids, batch.weights * 3)
    found, engine, other = objective(model, gce_q=0.7, neftune_alpha=50.0, normalise="traces"), Plain(model), make_model("Llama")
    with engine.evaluating():
        nll = found.selection_nll(engine, weighed)  # type: ignore[arg-type]
        assert not model.training  # what the first batch looks into leaves the mode as it was
    assert nll == pytest.approx(objective(other).loss(Plain(other), batch).nll, rel=1e-6)  # type: ignore[arg-type]


def test_a_batch_without_a_label_has_a_loss_of_zero_that_can_be_differentiated() -> None:
    model = make_model("Llama, tied")
    found = objective(model).loss(Plain(model), make_batch(packed=True).unsupervised())  # type: ignore[arg-type]
    torch.autograd.backward(found.total)
    assert found.nll == 0
    assert all(not gradient.any() for gradient in gradients(model).values())

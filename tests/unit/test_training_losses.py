"""Each loss against its definition, written out in fp64 over whole logits and differentiated by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from w2sr.training import fused
from w2sr.training.fused import Projection, Shape, Supervised, TokenLoss, fused_loss

WIDTH, VOCABULARY = 6, 23
Definition = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll(logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def smoothed(logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.3)


def gce(logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    p = logits.softmax(1)[torch.arange(len(targets)), targets]
    return (1 - p**0.7) / 0.7


def mae(logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    """Zhang and Sabuncu: q = 1 is the mean absolute error between p and the one-hot target, halved."""
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[1])
    return (logits.softmax(1) - one_hot).abs().sum(1) / 2


def confidence(logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    own = logits.detach().argmax(1)
    return 0.6 * nll(logits, targets, logits) + 0.4 * nll(logits, own, logits)


def with_kl(logits: Tensor, targets: Tensor, base: Tensor) -> Tensor:
    kl = torch.nn.functional.kl_div(logits.log_softmax(1), base.log_softmax(1), log_target=True, reduction="none").sum(1)
    return nll(logits, targets, base) + 0.25 * kl


def gce_with_kl(logits: Tensor, targets: Tensor, base: Tensor) -> Tensor:
    return gce(logits, targets, base) + with_kl(logits, targets, base) - nll(logits, targets, base)


CASES: dict[str, tuple[TokenLoss, Definition]] = {
    "nll": (TokenLoss(), nll),
    "label smoothing": (TokenLoss(label_smoothing=0.3), smoothed),
    "generalised cross-entropy": (TokenLoss(gce_q=0.7), gce),
    "mean absolute error": (TokenLoss(gce_q=1.0), mae),
    "confidence": (TokenLoss(confidence=0.4), confidence),
    "kl to base": (TokenLoss(kl_to_base=0.25), with_kl),
    "both": (TokenLoss(gce_q=0.7, kl_to_base=0.25), gce_with_kl),
}
SHAPES = {"plain": Shape(), "scaled": Shape(0.25), "capped": Shape(cap=1.5), "scaled and capped": Shape(2.0, 1.5)}


def written_out(output: Tensor, shape: Shape) -> Tensor:
    scaled = output * shape.scale
    return scaled if shape.cap is None else shape.cap * torch.tanh(scaled / shape.cap)


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(tokens)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "hidden": draw(tokens, WIDTH).requires_grad_(),
        "weight": draw(VOCABULARY, WIDTH).requires_grad_(),
        "bias": draw(VOCABULARY).requires_grad_(),
        "targets": torch.randint(0, VOCABULARY, (tokens,), generator=generator),
        "weights": torch.rand(tokens, generator=generator) + 0.1,
        "base": draw(tokens, VOCABULARY),
    }


def ours(given: dict[str, Any], loss: TokenLoss, shape: Shape) -> tuple[Tensor, Supervised]:
    base = (given["base"], Projection(None)) if loss.kl_to_base else None
    asked = Supervised(torch.arange(len(given["targets"])), given["targets"], given["weights"], loss, base)
    return fused_loss(given["hidden"], Projection(given["weight"], given["bias"], shape), asked), asked


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loss_and_its_gradients_are_those_of_its_definition(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 4 * VOCABULARY)  # several chunks, the last not full
    loss, definition = CASES[name]
    given = inputs(13)
    parameters = [given[key] for key in ("hidden", "weight", "bias")]
    logits = written_out(given["hidden"] @ given["weight"].T + given["bias"], SHAPES[shape])
    expected = (definition(logits, given["targets"], given["base"]) * given["weights"]).sum()
    total, asked = ours(given, loss, SHAPES[shape])
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert asked.nll is not None
    torch.testing.assert_close(asked.nll, nll(logits, given["targets"], given["base"]).detach())
    for one, other in zip(torch.autograd.grad(3 * total, parameters), torch.autograd.grad(3 * expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 40), chunk=st.integers(1, 50))
def test_the_size_of_chunks_changes_nothing(tokens: int, chunk: int) -> None:
    given, found = inputs(tokens), []
    for elements in (chunk * VOCABULARY, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "CHUNK_ELEMENTS", elements)
            total, _ = ours(given, TokenLoss(), Shape())
        found.append([total, *torch.autograd.grad(total, [given[key] for key in ("hidden", "weight", "bias")])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_that_are_there_already_give_the_same() -> None:
    given = inputs(9)
    logits = (given["hidden"] @ given["weight"].T).detach().requires_grad_()
    asked = Supervised(torch.arange(9), given["targets"], given["weights"], TokenLoss(gce_q=0.7))
    total = fused_loss(logits, Projection(None), asked)
    expected = (gce(logits, given["targets"], logits) * given["weights"]).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (total, expected)))


def test_weights_that_follow_from_the_loss_count_as_constants() -> None:
    given = inputs(9)
    asked = Supervised(torch.arange(9), given["targets"], given["weights"], TokenLoss(), reweigh=lambda found: found.square())
    total = fused_loss(given["hidden"], Projection(given["weight"]), asked)
    found = nll(given["hidden"] @ given["weight"].T, given["targets"], given["base"])
    expected = (found * found.detach().square()).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, given["weight"])[0] for loss in (total, expected)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_summed_in_fp32_and_small_gradients_survive(dtype: torch.dtype, tolerance: float) -> None:
    given = inputs(200, dtype)
    total, _ = ours(given, TokenLoss(), Shape())
    assert total.dtype == torch.float32
    wide = {key: value.detach().double().requires_grad_() if value.is_floating_point() else value for key, value in given.items()}
    expected, _ = ours(wide, TokenLoss(), Shape())
    found = torch.autograd.grad(total, [given["hidden"], given["weight"]])
    right = torch.autograd.grad(expected, [wide["hidden"], wide["weight"]])
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() < tolerance * other.norm()


def test_without_gradients_none_are_made() -> None:
    given = inputs(9)
    with torch.no_grad():
        total, asked = ours(given, TokenLoss(), Shape())
    assert not total.requires_grad
    assert asked.nll is not None
    assert math.isfinite(asked.nll.sum().item())


def test_a_frozen_head_gets_no_gradient() -> None:
    given = inputs(9)
    given["weight"].requires_grad_(False)
    total, _ = ours(given, TokenLoss(), Shape())
    torch.autograd.backward(total)
    assert given["weight"].grad is None
    assert given["hidden"].grad is not None

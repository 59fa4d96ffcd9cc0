"""Tokens are drawn with exactly the probabilities asked for, and from noise that belongs to the row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from w2sr.teachers import sampling
from w2sr.teachers.sampling import choose_tokens, nucleus, row_noise

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 3.0, -4.0, 0.25]])


def draw(temperature: float, top_p: float, num: int = 20_000) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    noise = torch.from_numpy(row_noise(list(range(num // 100)), 100)).flatten()
    chosen = choose_tokens(LOGITS.expand(num, -1), noise, temperature, top_p)
    return np.bincount(chosen.numpy(), minlength=LOGITS.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
def test_frequencies_are_the_softmax_within_the_nucleus(temperature: float, top_p: float) -> None:
    counts = draw(temperature, top_p)
    exact = torch.softmax(LOGITS[0].double() / temperature, dim=-1)
    exact = exact * nucleus(exact.unsqueeze(0), top_p)[0]
    kept = exact > 0
    assert counts[~kept.numpy()].sum() == 0
    expected = (exact / exact.sum() * counts.sum())[kept].numpy()
    if len(expected) > 1:
        assert chisquare(counts[kept.numpy()], expected).pvalue > 1e-3


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.6, 0.9, 0.95, 0.999])
def test_the_nucleus_is_the_one_of_transformers(top_p: float) -> None:
    from transformers import TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 97, generator=generator) * 3
    theirs = TopPLogitsWarper(top_p)(torch.zeros(64, 1, dtype=torch.long), logits).isfinite()
    assert torch.equal(nucleus(torch.softmax(logits.double(), dim=-1), top_p), theirs)


@pytest.mark.parametrize("head", [1, 2, 5, 256])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999])
def test_the_nucleus_is_that_of_a_stable_sort_also_among_equals(top_p: float, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "HEAD", head)
    generator = torch.Generator().manual_seed(1)
    # Coarse logits, as of bfloat16: many tokens are equally likely.
    for logits in (torch.randn(200, 97, generator=generator).mul(2).round(), torch.zeros(3, 97), torch.randn(20, 97, generator=generator)):
        probabilities = torch.softmax(logits.double(), dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        inside = ordered.cumsum(dim=-1) - ordered < top_p
        expected = torch.zeros_like(inside).scatter(-1, order, inside)
        assert torch.equal(nucleus(probabilities, top_p), expected)


def test_temperature_zero_is_greedy() -> None:
    assert choose_tokens(LOGITS, torch.tensor([0.999]), 0, 1.0).tolist() == [5]


def test_noise_at_either_end_picks_a_token_of_the_nucleus() -> None:
    logits = torch.tensor([[-50.0, 1.0, 1.0, -50.0]])
    ends = torch.tensor([0.0, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)
    assert choose_tokens(logits.expand(3, -1), ends, 1.0, 0.9).tolist() == [1, 2, 2]


def test_a_rows_noise_is_a_function_of_its_seed() -> None:
    alone, together = row_noise([7], 50), row_noise([3, 7, 2**63 - 1], 50)
    assert np.array_equal(alone[0], together[1])
    assert np.array_equal(row_noise([7], 10)[0], alone[0][:10]), "a longer limit does not change the first steps"
    assert len(np.unique(together)) == 150
    assert together.min() >= 0
    assert together.max() < 1


def test_noise_is_pinned_so_that_old_runs_can_be_made_again() -> None:
    assert row_noise([12345], 3)[0].tolist() == [0.6463801884227345, 0.7742675977164786, 0.7864362639285933]

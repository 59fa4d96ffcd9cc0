from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packed import collate_packed, collate_padded
from w2sr.packing.pack import IGNORED, MicroBatch
from w2sr.packing.rows import Row

SHAPES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=10)


def rows_of(shapes: list[tuple[int, int]]) -> list[Row]:
    """Rows with (prefix, trace) lengths as given and ids that differ everywhere."""
    rng = np.random.default_rng(0)
    return [
        Row(f"e{n}", "p", tuple(int(i) for i in rng.integers(3, 90, prefix + trace)), prefix) for n, (prefix, trace) in enumerate(shapes)
    ]


@given(SHAPES, st.booleans())
def test_packing_keeps_every_token_label_and_position(shapes: list[tuple[int, int]], flatten: bool) -> None:
    rows = rows_of(shapes)
    batch = collate_packed(rows, pad_id=0, capacity=40, flatten=flatten)
    assert batch.position_ids is not None
    found = set()
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids):
        starts = [*np.flatnonzero(positions == 0), len(ids)]
        for start, stop in pairwise(starts):
            if ids[start] == 0:
                assert (labels[start:stop] == IGNORED).all()  # padding
                continue
            assert (positions[start:stop] == np.arange(stop - start)).all()
            found.add((tuple(ids[start:stop]), tuple(labels[start:stop])))
    assert found == {(row.ids, (*[IGNORED] * row.num_prefix, *row.ids[row.num_prefix :])) for row in rows}
    assert not flatten or len(batch.input_ids) == 1


def nll_and_gradient(batch: MicroBatch, attention: str) -> tuple[float, list[object]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, attn_implementation=attention
    )
    model = LlamaForCausalLM(config).double()
    positions = None if batch.position_ids is None else torch.from_numpy(batch.position_ids)
    logits = model(input_ids=torch.from_numpy(batch.input_ids), position_ids=positions, use_cache=False).logits
    targets = torch.from_numpy(batch.labels[:, 1:]).flatten()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100, reduction="sum")
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flatten", [False, True])
def test_packed_rows_give_the_loss_and_gradients_of_unpacked_rows(attention: str, flatten: bool) -> None:
    import torch

    rows = rows_of([(3, 9), (1, 1), (8, 20), (2, 5), (4, 4), (5, 17)])
    loss, gradients = nll_and_gradient(collate_padded(rows, 0), attention)
    packed = collate_packed(rows, 0, 40, flatten)
    assert len(packed.input_ids) < len(rows)
    packed_loss, packed_gradients = nll_and_gradient(packed, attention)
    assert packed_loss == pytest.approx(loss, rel=1e-12)
    for one, other in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)  # transformers takes eager softmax in fp32


@settings(max_examples=8, deadline=None)
@given(SHAPES)
def test_padding_changes_no_loss(shapes: list[tuple[int, int]]) -> None:
    rows = rows_of(shapes)
    together = nll_and_gradient(collate_padded(rows, 0), "sdpa")[0]
    alone = sum(nll_and_gradient(collate_padded([row], 0), "sdpa")[0] for row in rows)
    assert together == pytest.approx(alone, rel=1e-12)

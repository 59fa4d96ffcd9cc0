from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from w2sr.errors import UserError
from w2sr.training.average import weight
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.engine_shards import Shard, read_shards, write_shards
from w2sr.training.optimizer import optimizer_section, parameter_groups, set_learning_rate
from w2sr.training.update_ratios import SAMPLE, layer_of, sample, warning
from w2sr.training.writing import Writer

MUON = {"type": "muon", "muon_learning_rate": 0.02}


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_steps": 20, "learning_rate": 1e-3, **changes})


def test_torchs_fused_adamw_is_asked_for_and_deepspeeds_own_for_states_beside_a_gpu() -> None:
    train = config(optimizer={"weight_decay": 0.1, "beta2": 0.999})
    expected = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    assert optimizer_section(train, offloaded=True) == {"type": "AdamW", "params": expected}
    assert optimizer_section(train, offloaded=False) == {"type": "AdamW", "params": {**expected, "torch_adam": True, "fused": True}}


def test_muon_is_asked_for_without_clipping_and_under_zero_3_with_whole_gradients() -> None:
    train = config(optimizer=MUON, max_grad_norm=None, zero_stage=3)
    asked = deepspeed_config(train, 2, on_gpu=False)
    assert (asked["optimizer"]["type"], asked["optimizer"]["params"]["muon_lr"]) == ("Muon", 0.02)
    assert asked["gradient_clipping"] == 0
    assert asked["zero_optimization"]["reduce_scatter"] is False


def test_the_rates_of_both_halves_of_muon_follow_one_schedule() -> None:
    groups: list[dict[str, Any]] = [{"use_muon": True}, {"use_muon": False}]
    set_learning_rate(config(optimizer=MUON, max_grad_norm=None), groups, 2.5e-4)
    assert [group["lr"] for group in groups] == pytest.approx([0.005, 2.5e-4])
    adamw: list[dict[str, Any]] = [{}, {}]
    set_learning_rate(config(), adamw, 1e-3 / 3)
    assert [group["lr"] for group in adamw] == [1e-3 / 3] * 2  # to the bit


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [
        ({}, [(3, None)]),
        ({"weight_decay": 0.1}, [(1, None), (2, 0.0)]),
        ({"weight_decay": 0.1, "decay_vectors": True}, [(3, None)]),
    ],
)
def test_gains_and_biases_do_not_decay_unless_asked(optimizer: dict[str, Any], sizes: list[tuple[int, float | None]]) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2, bias=False), torch.nn.Linear(2, 2).requires_grad_(False))
    groups = parameter_groups(config(optimizer=optimizer), model)
    assert [(len(group["params"]), group.get("weight_decay")) for group in groups] == sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"type": "muon"}}, "type=muon needs muon_learning_rate"),
        ({"optimizer": {"muon_learning_rate": 0.1}}, "muon_learning_rate=0.1 is for type=muon; given: type=adamw"),
        ({"optimizer": MUON}, r"optimizer.type=muon needs max_grad_norm: null \(given: 1.0\): DeepSpeed takes the norm after"),
        (
            {"optimizer": MUON, "max_grad_norm": None, "memory": {"offload_optimizer": "cpu"}},
            "optimizer.type=muon does not combine with memory.offload_optimizer",
        ),
        (
            {"optimizer": MUON, "max_grad_norm": None, "num_ranks": 2, "min_ranks": 1, "micro_batch_tokens": 9, "max_length": 9},
            r"optimizer.type=muon with zero_stage=2 cannot go on with fewer ranks",
        ),
        ({"optimizer": {"sane_update_ratio": [1e-2, 1e-3]}}, r"sane_update_ratio=\[0.01, 0.001\]: give the lower bound"),
        (
            {"optimizer": {"average": {}}, "zero_stage": 3, "memory": {"offload_optimizer": "nvme", "nvme_path": "/d"}},
            "optimizer.average needs the weights in memory at each step",
        ),
        (
            {"selection": {"every": 2, "export": "best"}, "zero_stage": 3, "memory": {"offload_parameters": "nvme", "nvme_path": "/d"}},
            "selection.export=best needs the weights in memory",
        ),
        ({"selection": {"patience": 2}}, "choose among evaluations: give selection.every"),
        ({"selection": {"every": 2, "min_gain": 0.1}}, "selection.min_gain decides nothing without"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


@given(st.floats(0.01, 0.9999), st.integers(1, 200))
def test_the_shares_of_an_average_are_those_of_its_closed_form(decay: float, number: int) -> None:
    shares: list[float] = []
    for taken in range(1, number + 1):
        added = weight(decay, taken)
        shares = [share * (1 - added) for share in shares] + [added]
    expected = [(1 - decay) * decay ** (number - i) / (1 - decay**number) for i in range(1, number + 1)]
    assert shares == pytest.approx(expected, rel=1e-9)
    assert math.fsum(shares) == pytest.approx(1)


def test_a_decay_of_one_is_the_plain_mean_and_near_it_almost() -> None:
    assert [weight(1.0, number) for number in (1, 2, 3)] == [1, 1 / 2, 1 / 3]
    assert weight(1 - 1e-9, 7) == pytest.approx(1 / 7)


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """`size` elements cut into pieces for some ranks; a rank may have none."""
    places = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
    return list(zip([0, *places], [*places, size], strict=True))


@given(st.data(), st.integers(1, 30), st.integers(1, 30))
def test_what_some_ranks_wrote_any_other_ranks_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, one: int, two: int
) -> None:
    import torch

    whole = {"one": torch.randn(one), "two": torch.randn(two)}

    def dealt() -> list[list[Shard]]:
        pieces = {name: data.draw(cuts(len(values))) for name, values in whole.items()}
        num_ranks = max(map(len, pieces.values()))
        return [
            [Shard(name, whole[name][of[rank][0] : of[rank][1]], of[rank][0], 1) for name, of in pieces.items() if rank < len(of)]
            for rank in range(num_ranks)
        ]

    folder = tmp_path_factory.mktemp("shards")
    for rank, shards in enumerate(dealt()):
        write_shards(shards, folder, rank, Writer(in_background=False))
    for shards in dealt():
        read = [shard.holding(torch.full_like(shard.values, float("nan"))) for shard in shards]
        read_shards(read, folder)
        assert all(torch.equal(mine.values, shard.values) for mine, shard in zip(read, shards, strict=True))


def test_a_file_of_shards_holds_no_more_than_them(tmp_path: Path) -> None:
    import torch

    storage = torch.zeros(1_000_000)
    silent = Shard("b", storage, 0, 1, counts=False)
    write_shards([Shard("a", storage[5:8], 0, 1), silent], tmp_path, 0, Writer(in_background=False))
    assert (tmp_path / "rank-00000.pt").stat().st_size < 10_000


def test_missing_weights_are_named(tmp_path: Path) -> None:
    import torch

    write_shards([Shard("a", torch.zeros(3), 0, 1)], tmp_path, 0, Writer(in_background=False))
    with pytest.raises(UserError, match=r"lacks weights of a and 1 more parameters; restore it"):
        read_shards([Shard("a", torch.zeros(4), 0, 1), Shard("b", torch.zeros(1), 0, 1)], tmp_path)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "model.layers.11"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight", "base_model.model.model.layers.0"),
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", "model.layers.3"),
        ("transformer.h.2.attn.c_attn.bias", "transformer.h.2"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("lm_head.weight", "lm_head"),
        ("model.norm.bias", "model.norm"),
    ],
)
def test_parameters_belong_to_their_blocks(name: str, layer: str) -> None:
    assert layer_of(name) == layer


@given(width=st.sampled_from([1, 64, 896, 1000, 4096, 5120, 11008]), size=st.integers(1, 1 << 21))
def test_a_sample_is_small_and_looks_at_every_column(width: int, size: int) -> None:
    import torch

    values = torch.arange(size)
    found = sample(Shard("a", values, 0, width))
    assert len(found) <= SAMPLE
    assert size > SAMPLE or torch.equal(found, values)
    columns = len(torch.unique(found % width))
    assert columns >= min(width, len(found))


def test_the_norm_of_a_sample_is_that_of_all_within_two_percent() -> None:
    import torch

    values = torch.randn(300, 4096, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 4096)
    found = sample(Shard("a", values.view(-1), 0, 4096))
    estimate = float(found.norm()) * math.sqrt(values.numel() / len(found))
    assert estimate == pytest.approx(float(values.norm()), rel=0.02)


def test_a_layer_out_of_the_sane_range_is_named_with_a_rate_that_would_be_sane() -> None:
    ratios = {"model.layers.0": 5e-2, "model.layers.1": 1e-3}
    found = warning(ratios, 1e-6, 1e-2, lambda _: ("train.learning_rate", 2e-4))
    assert found is not None
    assert found.startswith("model.layers.0 moves by 5.0e-02 of its weights a step at the peak learning rate, more than any")
    assert "; 1e-06 to 1e-02 is usual. train.learning_rate=0.0002 looks too high: try about 4e-05 or less, or move the bounds" in found
    low = warning({"lm_head": 1e-9, "model.norm": 1e-12}, 1e-6, 1e-2, lambda layer: (f"rate of {layer}", 1e-8))
    assert low is not None
    assert "rate of lm_head=1e-08 looks too low: try about 1e-05 or more" in low
    assert warning({"a": 1e-3, "norm": 1e-9}, 1e-6, 1e-2, lambda _: ("a", 1.0)) is None
    assert warning({}, 1e-6, 1e-2, lambda _: ("a", 1.0)) is None
    assert "try more" in (warning({"a": 0.0}, 1e-6, 1e-2, lambda _: ("a", 1.0)) or "")

"""What plan proposes is what the configuration takes, in the words in which it takes it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_plan import ASKED, QWEN_1B, QWEN_7B, write_config
from w2sr.config import load_config
from w2sr.errors import UserError
from w2sr.planning.activations import activations
from w2sr.planning.actual import predict
from w2sr.planning.answering import num_devices, replica
from w2sr.planning.assumptions import GIB, Assumptions
from w2sr.planning.cache import cache_bytes
from w2sr.planning.layout import layout_of
from w2sr.planning.plan import make_plan
from w2sr.planning.refused import refuse_what_training_refuses
from w2sr.planning.search import Option, cheapest_change, fastest, neighbours
from w2sr.planning.shapes import shape_from
from w2sr.planning.states import model_states
from w2sr.run import Run
from w2sr.teachers.config import HFEngineConfig, PoolConfig, VLLMEngineConfig
from w2sr.training.batches import cut
from w2sr.training.config import TrainConfig
from w2sr.training.spec import TrainResult, TrainSpec

# Each goes with something that a search without the configuration would try.
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"memory": {"compile": True}},
    "activations on the host": {"gradient_checkpointing": True, "memory": {"offload_activations": True}},
    "muon": {"optimizer": {"type": "muon", "muon_learning_rate": 0.01}, "max_grad_norm": None},
    "average": {"optimizer": {"average": {"decay": 0.9}}, "memory": {"nvme_path": "/nvme"}},
    "rows that have to divide": {"global_batch_tokens": None, "global_batch_size": 48, "micro_batch_size": 6},
    "tokens": {"micro_batch_size": None, "micro_batch_tokens": 40_000, "packing": False},
    "fp32": {"precision": "fp32", "zero_stage": 0},
    "shared sequences": {"memory": {"sequence_parallel": 4}},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_option_is_taken_by_the_configuration(tmp_path: Path, name: str) -> None:
    path = write_config(tmp_path, {"max_steps": 1, "epochs": None, "global_batch_size": None, **ASKED, **TRAININGS[name]})
    train, shape = load_config(path).train, shape_from("x", QWEN_7B)
    found: list[Option] = []
    for gib in (79, 20):
        assumed = Assumptions(gpu_gib=gib)
        best, change = fastest(shape, train, assumed, 4e6), cheapest_change(shape, train, assumed)
        found += [*neighbours(shape, train, assumed), *([best[0]] if best else []), *([change] if change else [])]
    different = {option.describe(): option for option in found if option.changes}
    assert different
    for text, option in different.items():
        assert layout_of(load_config(path, text.split(", ")).train, shape) == option.layout


def test_what_is_offloaded_may_fit_faster_without() -> None:
    """Small enough for a GPU as it is: the fastest takes the optimizer back from the host."""
    train = TrainConfig.model_validate({**ASKED, "memory": {"offload_optimizer": "cpu"}})
    found = fastest(shape_from("x", QWEN_1B), train, Assumptions(), 4e6)
    assert found is not None
    assert found[0].layout.offload_optimizer == "device"
    assert found[0].changes["train.memory.offload_optimizer"] == "device"


def planned(path: Path, overrides: list[str], gib: float) -> dict[str, Any]:
    """Return the lines of a plan by stage and model."""
    config = load_config(path, overrides)
    plan = make_plan(Run(config, Path(config.run_dir), nullcontext), Assumptions(gpu_gib=gib))
    return {f"{item.stage} {Path(item.model).name}": item for item in plan.items}


def test_remedies_of_engines_are_taken_and_fit(tmp_path: Path) -> None:
    path, seen = write_config(tmp_path), set()
    for gib in (16, 20.5):
        for item in planned(path, [], gib).values():
            if item.stage != "train" and item.remedy is not None:
                assert not item.memory.fits
                again = planned(path, item.remedy.split(", "), gib)[f"{item.stage} {Path(item.model).name}"]
                assert again.memory.fits
                seen |= {part.split("=")[0] for part in item.remedy.split(", ")}
    assert {"evaluate.engine.max_model_len", "evaluate.engine.tensor_parallel_size", "evaluate.pool.gpus_per_replica"} <= seen


def test_vllm_needs_room_for_the_longest_sequence_of_the_model() -> None:
    shape = shape_from("x", {**QWEN_1B, "max_position_embeddings": 1_000_000})
    pool = PoolConfig(replicas=1, gpus_per_replica=1)
    one = replica(shape, VLLMEngineConfig(kind="vllm"), pool, (200, 1000), Assumptions(gpu_gib=24))
    assert one.memory.parts["cache"] == cache_bytes(shape, 1_000_000, "bfloat16")
    assert not one.memory.fits
    assert one.remedies[0] == {"engine.max_model_len": 500_000}
    assert "sequences of 1,200 tokens" in one.note


def test_gpus_beyond_the_heads_of_keys_hold_copies() -> None:
    shape = shape_from("x", QWEN_1B)  # 2 heads of keys and values
    sizes = {}
    for size in (1, 2, 4):
        engine = VLLMEngineConfig(kind="vllm", tensor_parallel_size=size)
        pool = PoolConfig(replicas=1, gpus_per_replica=size)
        sizes[size] = replica(shape, engine, pool, (200, 1000), Assumptions()).memory.parts["cache"]
    assert sizes[2] == sizes[4] == sizes[1] // 2
    tight = replica(shape, VLLMEngineConfig(kind="vllm"), PoolConfig(replicas=1, gpus_per_replica=1), (200, 1000), Assumptions(gpu_gib=5))
    assert {each.get("engine.tensor_parallel_size") for each in tight.remedies} <= {None, 2, 4, 6}  # what divides 12 heads


def test_replicas_share_a_gpu_or_have_several(tmp_path: Path) -> None:
    half = PoolConfig(replicas=4, gpus_per_replica=0.5)
    assert num_devices(half) == 2
    assert num_devices(PoolConfig(replicas=2, gpus_per_replica=4)) == 8
    assert num_devices(PoolConfig(replicas=3)) == 3
    one = replica(shape_from("x", QWEN_1B), HFEngineConfig(batch_size=1), half, (200, 1000), Assumptions(gpu_gib=80))
    assert one.memory.has == 40 * GIB
    config = write_config(tmp_path)
    with pytest.raises(UserError, match=r"evaluate: pool\.gpus_per_replica=1, but tensor_parallel_size=2; give the same number"):
        load_config(config, ["evaluate.engine.tensor_parallel_size=2"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 40_000}, "train.max_length=40000 is more than the 32768 positions of the model"),
        ({"lora": {"targets": ["nope"]}}, "train.lora.targets names 'nope', no linear layer of the model; it has: down_proj, gate_proj"),
        ({"memory": {"sequence_parallel": 8}}, "cannot share the 28 attention heads .4 for keys and values."),
    ],
)
def test_what_the_training_refuses_is_refused(changes: dict[str, Any], said: str) -> None:
    train = TrainConfig.model_validate({**ASKED, **changes})
    with pytest.raises(UserError, match=said):
        refuse_what_training_refuses(train, shape_from("x", QWEN_7B))


def test_unpadded_budgets_are_filled_with_shorter_rows() -> None:
    shape = shape_from("x", QWEN_1B)
    values = {**ASKED, "packing": False, "max_length": 256, "micro_batch_size": None, "micro_batch_tokens": 511}
    layout = layout_of(TrainConfig.model_validate(values), shape)
    assert layout.micro_tokens == 511
    packed = layout_of(TrainConfig.model_validate({**values, "packing": True}), shape)
    assert packed.micro_tokens == 256


def test_the_prediction_fills_the_budget_too(tmp_path: Path) -> None:
    """Rows of 60 tokens: the trainer puts eight of them, 480 tokens, into a micro-batch of 511, though one may have 256."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_1B))
    assert max(60 * len(units) for share in cut(np.full(16, 60), 1, None, 511) for units in share) == 480
    values = {**ASKED, "num_ranks": 1, "use_gpu": False, "packing": False, "max_length": 256, "micro_batch_size": None}
    train = TrainConfig.model_validate({**values, "micro_batch_tokens": 511, "global_batch_tokens": 960})
    spec = TrainSpec("a", 0, train, str(tmp_path), "digest", "rows", str(tmp_path))
    found = predict(spec, TrainResult(1, 960, 900, 1.0, 1.0, ((1, 1),), 1, "all steps"), 60)
    assert "micro-batch of 511 tokens" in found["layout"]
    assert found["parts"]["activations"] == activations(shape_from("x", QWEN_1B), 511, "bf16", recompute=False).kept


def test_tuned_buckets_count() -> None:
    shape = shape_from("x", QWEN_1B)
    small = {"reduce_bucket_size": 5_000_000, "stage3_max_live_parameters": 20_000_000}
    train = TrainConfig.model_validate({**ASKED, "zero_stage": 3})
    tuned = TrainConfig.model_validate({**ASKED, "zero_stage": 3, "deepspeed": {"zero_optimization": small}})
    plain, less = (model_states(shape, layout_of(each, shape)) for each in (train, tuned))
    assert (plain.buffers, less.buffers) == (100_000_000, 10_000_000)
    assert less.gathered < plain.gathered


def test_ranks_of_a_small_node_share_its_memory_among_themselves() -> None:
    assumed = Assumptions(host_gib=800, gpus_per_node=8)
    assert [assumed.gpu(ranks).host_bytes for ranks in (1, 2, 8, 64)] == [800 * GIB, 400 * GIB, 100 * GIB, 100 * GIB]

"""DeepSpeed's configuration is a pure function of ours; experts may add to it, not contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2sr.errors import UserError
from w2sr.training.config import TrainConfig
from w2sr.training.deepspeed_dict import deepspeed_config
from w2sr.training.deepspeed_keys import DECIDED_BY, OTHERS, SECTIONS, TUNABLE, decided_by, leaves

GOLDEN = Path(__file__).parents[1] / "golden" / "deepspeed.json"


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_steps": 1} | changes)


def on_gpu(memory: dict[str, Any], **changes: Any) -> TrainConfig:
    return config(zero_stage=3, precision="bf16", num_ranks=8, use_gpu=True, memory=memory, **changes)


CASES = {
    "zero0-fp32-cpu": config(zero_stage=0),
    "zero2-fp32-cpu": config(zero_stage=2),
    "zero2-fp32-cpu-offload": config(zero_stage=2, memory={"offload_optimizer": "cpu"}),
    "zero2-fp16-gpu": config(zero_stage=2, precision="fp16", use_gpu=True),
    "zero3-bf16-gpu": on_gpu({}),
    "zero3-bf16-gpu-offload": on_gpu({"offload_optimizer": "cpu", "offload_parameters": "cpu", "pin_memory": False}),
    "zero3-bf16-gpu-nvme": on_gpu({"offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/local_nvme"}),
    "zero3-bf16-gpu-zero++": on_gpu({"hpz_partition_size": 8, "quantized_weights": True, "quantized_gradients": True}),
    "zero3-bf16-gpu-muon": on_gpu({}, optimizer={"type": "muon", "muon_learning_rate": 0.01}, max_grad_norm=None),
    "zero3-bf16-gpu-override": on_gpu({}, deepspeed={"aio": {"queue_depth": 32}, "zero_optimization": {"reduce_bucket_size": 1000}}),
}


def dicts() -> dict[str, dict[str, Any]]:
    return {name: deepspeed_config(train, train.num_ranks, train.use_gpu) for name, train in CASES.items()}


def test_the_deepspeed_configuration_is_the_committed_one() -> None:
    """To accept a change: python -m tests.unit.test_deepspeed_dict"""
    assert dicts() == json.loads(GOLDEN.read_text()), f"DeepSpeed's configuration changed; to accept: python -m {__name__}"


def test_the_number_of_ranks_and_the_universal_form_are_asked_of_deepspeed() -> None:
    found = deepspeed_config(config(num_ranks=4), 2, on_gpu=False, universal=True)
    assert found["train_batch_size"] == 2
    assert found["checkpoint"] == {"load_universal": True}


def test_every_key_of_ours_is_either_decided_by_a_named_key_or_tunable() -> None:
    universal = deepspeed_config(config(), 2, on_gpu=False, universal=True)
    for found in [*(values for name, values in dicts().items() if not name.endswith("override")), universal]:
        for path, _ in leaves(found):
            assert (decided_by(path) is not None) != (path in TUNABLE), path


def test_every_deciding_key_of_train_exists() -> None:
    for deciding in DECIDED_BY.values():
        for word in deciding.split():
            if word.startswith("train."):
                target: Any = config()
                for name in word.split(".")[1:]:
                    target = getattr(target, name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"zero_optimization": {"stage": 1}}, r"deepspeed.zero_optimization.stage is decided by train.zero_stage; set that"),
        ({"zero_optimization": 3}, r"deepspeed.zero_optimization is decided by train.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, r"is decided by train.memory.offload_optimizer"),
        ({"zero_optimization": {"mics_shard_size": 4}}, r"train.memory.hpz_partition_size \(DeepSpeed has removed MiCS\)"),
        ({"train_micro_batch_size_per_gpu": 4}, "decided by train.micro_batch_size"),
        ({"optimizer": {"params": {"lr": 1}}}, r"deepspeed.optimizer.params.lr is decided by train.optimizer and train.learning_rate"),
        ({"bf16": {"enabled": True}}, "decided by train.precision"),
        ({"scheduler": {}}, "decided by train.schedule"),
        ({"wall_clock_break_down": True}, "did you mean 'wall_clock_breakdown'.*allowed: aio"),
        ({"aio": {"queue_dpth": 3}}, r"deepspeed.aio.queue_dpth is no key .*did you mean 'queue_depth'"),
        ({"zero_optimization": {"reduce_bucket_sizze": 3}}, r"zero_optimization.reduce_bucket_sizze is no key .*'reduce_bucket_size'"),
        ({"zero_optimization": {"cpu_offload": True}}, r"decided by train.memory.offload_optimizer"),
        ({"zero_optimization": {"reduce_scatter": True}}, r"decided by train.optimizer"),
        ({"zero_optimization": {"offload_param": {"max_in_gpu": 1}}}, r"offload_param.max_in_gpu is no key .*allowed: buffer_count"),
    ],
)
def test_a_key_that_follows_from_ours_is_refused_with_what_decides_it(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(deepspeed=override)


def test_an_override_is_merged_deeply_and_leaves_the_rest() -> None:
    override = {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}, "overlap_comm": False}, "wall_clock_breakdown": True}
    memory = {"offload_optimizer": "cpu"}
    plain, found = (deepspeed_config(on_gpu(memory, deepspeed=value), 8, on_gpu=True) for value in ({}, override))
    plain["zero_optimization"]["offload_optimizer"]["ratio"] = 0.5
    plain["zero_optimization"]["overlap_comm"] = False
    assert found == {**plain, "wall_clock_breakdown": True}


def test_deepspeed_itself_accepts_every_configuration_and_knows_every_key() -> None:
    from w2sr.training.engine import check_values, import_deepspeed

    import_deepspeed(on_gpu=False)
    wrong = on_gpu({}, deepspeed={"zero_optimization": {"reduce_bucket_size": "big"}})
    with pytest.raises(UserError, match=r"train.deepspeed: zero_optimization.reduce_bucket_size: .*valid integer.*\(given: 'big'\)"):
        check_values(deepspeed_config(wrong, 8, on_gpu=True))
    from deepspeed.runtime import config as module
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.constants import AIO_FORMAT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig, get_zero_config
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

    files = [Path(module.__file__), *Path(module.__file__).parents[1].rglob("constants.py")]
    source = "".join(path.read_text() for path in files)
    assert [key for key in OTHERS if f'"{key}"' not in source and f"'{key}'" not in source] == []
    known = set(DeepSpeedZeroConfig.model_fields) | {field.alias for field in DeepSpeedZeroConfig.model_fields.values()}
    offload = (DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig)
    assert set(SECTIONS["zero_optimization"]) <= known
    for section, model in zip(("offload_optimizer", "offload_param"), offload, strict=True):
        assert set(SECTIONS[f"zero_optimization.{section}"]) <= set(model.model_fields)
    assert set(SECTIONS["fp16"]) <= set(DeepSpeedFP16Config.model_fields)
    assert all(f'"{key}"' in AIO_FORMAT for key in SECTIONS["aio"])
    for name, values in dicts().items():
        assert get_zero_config(values).stage == CASES[name].zero_stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_stage": 0, "precision": "bf16"}, r"zero_stage=0 with precision=bf16.*1, 2 or 3"),
        ({"zero_stage": 2, "memory": {"offload_parameters": "cpu"}}, r"memory.offload_parameters=cpu needs zero_stage=3 \(given: 2\)"),
        ({"zero_stage": 2, "memory": {"offload_optimizer": "nvme", "nvme_path": "/x"}}, "memory.offload_optimizer=nvme needs zero_stage=3"),
        ({"zero_stage": 0, "memory": {"offload_optimizer": "cpu"}}, "memory.offload_optimizer=cpu needs zero_stage 1, 2 or 3"),
        ({"zero_stage": 3, "memory": {"offload_optimizer": "nvme"}}, "needs memory.nvme_path"),
        ({"zero_stage": 2, "memory": {"hpz_partition_size": 2}}, "memory.hpz_partition_size=2 needs zero_stage=3"),
        ({"zero_stage": 3, "memory": {"quantized_weights": True}}, "run in CUDA kernels; set use_gpu=true"),
        ({"memory": {"offload_activations": True}}, "set gradient_checkpointing=true"),
        ({"zero_stage": 3, "memory": {"compile": True}}, "memory.compile does not combine with zero_stage=3"),
        ({"memory": {"compile": True, "sequence_parallel": 2}}, "memory.compile does not combine with memory.sequence_parallel"),
    ],
)
def test_what_does_not_combine_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_groups_that_do_not_divide_the_ranks_are_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(
        ValueError, match=r"6 ranks do not divide into groups of memory.hpz_partition_size=4; nearest valid num_ranks: 4, 8"
    ):
        config(zero_stage=3, num_ranks=6, memory={"hpz_partition_size": 4})
    elastic = config(num_ranks=4, min_ranks=1, memory={"sequence_parallel": 2})
    assert elastic.group_sizes == (2, 4)
    assert elastic.data_size(4) == 2
    with pytest.raises(UserError, match=r"3 ranks do not divide into groups of memory.sequence_parallel=2; nearest valid num_ranks: 2, 4"):
        elastic.check_size(3)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(dicts(), indent=1, sort_keys=True) + "\n")

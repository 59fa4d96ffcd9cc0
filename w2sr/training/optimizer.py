"""From `train.optimizer` to what DeepSpeed is told about it, and which parameters share a setting."""

from __future__ import annotations

from typing import Any

from w2sr.training.config import TrainConfig


def optimizer_section(train: TrainConfig, offloaded: bool) -> dict[str, Any]:
    """Return the "optimizer" part of DeepSpeed's configuration. `offloaded`: the states live on the CPU (or NVMe) beside a GPU."""
    optimizer = train.optimizer
    params: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": [optimizer.beta1, optimizer.beta2],
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.type == "muon":
        muon = {"muon_lr": optimizer.muon_learning_rate, "momentum": optimizer.muon_momentum, "ns_method": "standard"}
        return {"type": "Muon", "params": {**params, **muon, "torch_adam": True}}
    if not offloaded:  # DeepSpeed's own Adam, for states beside a GPU, is compiled on the training machine; torch's is there
        params |= {"torch_adam": True, "fused": True}  # fused on CPUs too: six times as fast as one operation after another
    return {"type": "AdamW", "params": params}


def set_learning_rate(train: TrainConfig, groups: list[dict[str, Any]], learning_rate: float) -> None:
    """Give the optimizer's parameter groups their rates for the next step, in which AdamW's is `learning_rate`."""
    for group in groups:
        peak = train.optimizer.muon_learning_rate if group.get("use_muon") else train.learning_rate
        assert peak is not None
        group["lr"] = learning_rate if peak == train.learning_rate else learning_rate / train.learning_rate * peak


def parameter_groups(train: TrainConfig, model: Any) -> list[dict[str, Any]]:
    """Return the trainable parameters of `model` (under ZeRO-3: partitioned) in groups with the same weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not train.optimizer.weight_decay or train.optimizer.decay_vectors:
        return [{"params": trainable}]
    matrices = [parameter for parameter in trainable if num_dimensions(parameter) > 1]
    vectors = [parameter for parameter in trainable if num_dimensions(parameter) <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def num_dimensions(parameter: Any) -> int:
    """Return the dimensions of a parameter, partitioned by ZeRO-3 (which leaves a flat placeholder) or not."""
    return len(getattr(parameter, "ds_shape", parameter.shape))

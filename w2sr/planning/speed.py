"""How fast a training goes: arithmetic, and the traffic of ZeRO and offload that does not hide behind it. A model, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.planning.assumptions import CPU_TRAINING, FP32_SHARE, Assumptions
from w2sr.planning.layout import HALF, Layout
from w2sr.planning.shapes import ModelShape


@dataclass(frozen=True)
class Speed:
    """Of one device. `mfu`: arithmetic that the model needs (nothing recomputed) over the device's peak; None on a CPU."""

    tokens_per_s: float
    mfu: float | None


def flops_per_token(shape: ModelShape, length: int) -> float:
    """Return the operations of one token forward and backward: 6 for each parameter it is multiplied with, and causal attention.

    Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B), with half of the scores computed: a token sees length / 2 others on average.
    """
    return 6.0 * shape.num_multiplied + 6.0 * shape.num_layers * shape.attention_width * length


def training_speed(shape: ModelShape, layout: Layout, assumed: Assumptions, step_tokens: float, cpus: float = 1.0) -> Speed:
    """Return the speed of one rank when a step has `step_tokens` over all ranks."""
    useful = flops_per_token(shape, layout.length)
    done = useful * (4 / 3 if layout.recompute else 1)
    if not layout.on_gpu:
        return Speed(CPU_TRAINING * max(1.0, cpus) / done, None)
    half = layout.precision in HALF
    peak = assumed.tflops * 1e12 * (1 if half else FP32_SHARE)
    own = layout.micro_tokens
    rounds = max(1.0, step_tokens / (own * layout.num_ranks))
    arithmetic = rounds * own * done / (peak * assumed.efficiency)
    sent = _traffic(shape, layout, rounds) / (_bandwidth(layout, assumed) * 1e9)
    fetched = _fetched(shape, layout, rounds, assumed)
    # What hides behind arithmetic hides a share at most, and no more than there is arithmetic.
    seconds = arithmetic + sum(max((1 - assumed.overlap) * each, each - arithmetic) for each in (sent, fetched))
    seconds += _update_seconds(shape, layout, assumed)
    rate = rounds * own / seconds
    return Speed(rate, rate * useful / peak)


def _bandwidth(layout: Layout, assumed: Assumptions) -> float:
    return assumed.within if layout.num_ranks <= assumed.gpus_per_node else assumed.across


def _traffic(shape: ModelShape, layout: Layout, rounds: float) -> float:
    """Return the bytes that a rank sends in a step. Rajbhandari et al. 2020 (arXiv 1910.02054), section 7, and once more a micro-batch.

    Stage 0 and 1 reduce gradients once a step, stage 2 once a micro-batch, stage 3 also gathers weights for both passes of each.
    """
    if layout.num_ranks == 1:
        return 0.0
    size = float(layout.weight_bytes * shape.num_parameters)
    by_stage = {0: 2 * size, 1: 3 * size, 2: (rounds + 1) * size, 3: 3 * rounds * size}
    return by_stage[layout.zero_stage]


def _rate(place: str, assumed: Assumptions) -> float:
    return (assumed.to_nvme if place == "nvme" else assumed.to_host) * 1e9


def _fetched(shape: ModelShape, layout: Layout, rounds: float, assumed: Assumptions) -> float:
    """Return the seconds in which a rank's shard of the weights comes from where it is offloaded, for both passes of each micro-batch."""
    if layout.offload_parameters == "device":
        return 0.0
    return 2 * rounds * layout.weight_bytes * shape.num_parameters / layout.num_ranks / _rate(layout.offload_parameters, assumed)


def _update_seconds(shape: ModelShape, layout: Layout, assumed: Assumptions) -> float:
    """Return the seconds of a step in which gradients go to the host, are applied there, and weights come back. Nothing hides this."""
    if layout.offload_optimizer == "device":
        return 0.0
    share = shape.num_parameters / layout.num_ranks
    copied = (4 + layout.weight_bytes) * share / _rate("cpu", assumed)
    # Adam reads the gradient, and reads and writes 12 bytes; the host's memory is taken to be as fast as the way there.
    return copied + 28 * share / _rate(layout.offload_optimizer, assumed)

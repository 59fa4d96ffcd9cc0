"""What a trace counts, what is known of its progress, noise on embeddings, and which combinations a configuration refuses."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packed import collate_packed, collate_padded
from tests.unit.test_training_head import Alone, Plain, make_batch, make_model, objective
from w2sr.errors import UserError
from w2sr.packing.rows import Row
from w2sr.records import Example, Verdict
from w2sr.training.config import TrainConfig
from w2sr.training.gains import Gains, Traces, gain_weights
from w2sr.training.liger import liger_loss
from w2sr.training.loss_config import LossConfig, ProgressConfig
from w2sr.training.noise import Noise, row_lengths
from w2sr.training.objective import confidence_at
from w2sr.training.weights import Agreement, row_weight, weigher


def example(prompt: str, text: str, teacher: str = "small", verdict: Verdict | None = None) -> Example:
    return Example(f"{prompt}/{text}/{teacher}", prompt, "?", text, teacher, None, verdict)


ARM = [
    example("a", "#### 7", "small", "correct"),
    example("a", "well #### 7.0", "large", "correct"),
    example("a", "#### 8", "small", "incorrect"),
    example("a", "no answer", "small", "unverifiable"),
    example("b", "#### 1", "gold"),
]


def weights(**values: Any) -> list[float]:
    found = weigher(LossConfig.model_validate(values), lambda: ARM)
    assert found is not None
    return [found(each) for each in ARM]


def test_a_trace_counts_by_its_verdict_and_its_teacher() -> None:
    assert weights(verdict_weights={"incorrect": 0.25, "unverifiable": 0.5}) == [1, 1, 0.25, 0.5, 1]
    assert weights(teacher_weights={"small": 0.5}, verdict_weights={"incorrect": 0.25}) == [0.5, 1, 0.125, 0.5, 1]


def test_a_trace_counts_by_how_many_of_its_prompt_give_its_answer() -> None:
    assert weights(agreement_power=2) == pytest.approx([1 / 4, 1 / 4, 1 / 16, 1 / 16, 1])


def test_without_weights_nobody_is_asked() -> None:
    assert weigher(LossConfig(normalise="traces"), lambda: ARM) is None
    assert row_weight(ARM[2], LossConfig(), Agreement()) == 1


def test_a_weight_for_a_teacher_that_there_is_not_is_refused() -> None:
    config = LossConfig(teacher_weights={"gold": 2.0, "smal": 0.5})
    with pytest.raises(ValueError, match=r"teacher_weights names 'smal'.*did you mean 'small'.*gold, human"):
        config.refuse_unknown_teachers(["small", "large"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gce_q": 0.5, "confidence": 0.2}, r"gce_q=0.5, confidence=0.2: .*at most one"),
        ({"gce_q": 1.5}, "less than or equal to 1"),
        ({"verdict_weights": {"incorrect": 0}}, "greater than or equal to 0.000001"),
        ({"agreement_power": float("inf")}, "less than or equal to 4|finite"),
        ({"verdict_weights": {"wrong": 0.5}}, "correct"),
        ({"kernel": "liger", "gce_q": 0.5}, r"plain NLL, without gce_q"),
        ({"kernel": "liger", "normalise": "traces"}, r"plain NLL, without normalise"),
        ({"progress": {"min_weight": 2, "max_weight": 1}}, r"min_weight=2.0 is more than max_weight=1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig.model_validate(values)


def test_liger_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.kernel=liger runs on GPUs only"):
        TrainConfig.model_validate({"max_steps": 1, "loss": {"kernel": "liger"}})


@pytest.mark.parametrize("values", [{}, {"neftune_alpha": 5.0}, {"kernel": "full"}])
def test_noise_and_kernels_leave_the_loss_the_nll(values: dict[str, Any]) -> None:
    assert LossConfig.model_validate(values).is_plain


@pytest.mark.parametrize("values", [{"progress": {}}, {"kl_to_base": 0.1}, {"normalise": "traces"}, {"verdict_weights": {"correct": 2}}])
def test_everything_else_makes_another_loss(values: dict[str, Any]) -> None:
    assert not LossConfig.model_validate(values).is_plain


def test_confidence_rises_over_its_warm_up() -> None:
    config = LossConfig(confidence=0.5, confidence_warmup=0.2)
    assert [confidence_at(config, step, 20) for step in (0, 1, 2, 4, 19)] == pytest.approx([0, 0.125, 0.25, 0.5, 0.5])
    assert confidence_at(LossConfig(confidence=0.5, confidence_warmup=0), 0, 20) == 0.5


def rows(*shapes: tuple[int, int]) -> list[Row]:
    return [Row(f"e{n}", "p", tuple(range(10 * n + 1, 10 * n + 1 + a + b)), a) for n, (a, b) in enumerate(shapes)]


SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8)


@settings(deadline=None)
@given(SHAPES, st.booleans())
def test_rows_are_told_apart_in_every_layout(shapes: list[tuple[int, int]], flatten: bool) -> None:
    made = rows(*shapes)
    padded = collate_padded(made, 0)
    for batch in (padded, collate_packed(made, 0, 20, flatten)):
        found = Traces.of(batch)
        assert set(found.keys) == set(Traces.of(padded).keys)
        assert sorted(found.num_tokens.tolist()) == sorted(b for _, b in shapes)
        assert found.counting_alike(batch).weights.sum() == pytest.approx(len(shapes), rel=1e-6)
        of_label = row_lengths(batch)[batch.labels >= 0]
        assert sorted(set(of_label.tolist())) == sorted({a + b for a, b in shapes})


def test_progress_follows_the_last_visit_and_settles_between_steps() -> None:
    config = ProgressConfig(alpha=2.0, beta=3.0, min_weight=0.0, max_weight=5.0)
    gains, group = Gains(config), Alone(0, 1, torch.device("cpu"))
    traces = Traces.of(collate_padded(rows((2, 1), (1, 3)), 0))
    assert gains.weights(traces, np.array([4.0, 1.0, 2.0, 3.0])).tolist() == [1, 1, 1, 1]
    assert gains.weights(traces, np.array([9.0, 9.0, 9.0, 9.0])).tolist() == [1, 1, 1, 1]  # the same step, tried again
    gains.settle(group, keep=False)
    gains.weights(traces, np.array([4.0, 1.0, 2.0, 3.0]))
    gains.settle(group)
    found = gains.weights(traces, np.array([3.5, 2.5, 2.5, 2.5]))
    sigmoid = [1 / (1 + np.exp(-3.0 * gain)) for gain in (0.5, -0.5)]
    assert found == pytest.approx([2 * (1 - sigmoid[0]), *[2 * (1 - sigmoid[1])] * 3])
    other = Gains(config)
    other.load(gains.state())
    assert other.weights(traces, np.array([3.5, 2.5, 2.5, 2.5])).tolist() == found.tolist()


@given(st.floats(-1e4, 1e4))
def test_a_weight_stays_in_its_range_and_falls_with_the_gain(gain: float) -> None:
    config = ProgressConfig()
    one, more = gain_weights(np.array([gain, gain + 0.1]), config)
    assert config.min_weight <= more <= one <= config.max_weight


def test_noise_has_the_scale_of_its_row_and_belongs_to_its_place() -> None:
    model = make_model("Llama")
    batch = make_batch(packed=True)
    plain = model.get_input_embeddings()(torch.from_numpy(batch.input_ids)).detach()
    noise = Noise(model, 5.0, seed=1, rank=0)

    def drawn(step: int, number: int) -> torch.Tensor:
        noise.draw(step, number, batch)
        found: torch.Tensor = model.get_input_embeddings()(torch.from_numpy(batch.input_ids)).detach() - plain
        return found

    one = drawn(3, 0)
    limit = 5.0 / np.sqrt(row_lengths(batch) * 32)
    largest = one.abs().amax(2).numpy()
    assert (largest <= limit + 1e-6).all()
    assert (largest > 0.7 * limit).all()
    assert torch.equal(one, drawn(3, 0))
    assert not torch.equal(one, drawn(3, 1))
    assert not torch.equal(one, drawn(4, 0))
    assert torch.equal(model.get_input_embeddings()(torch.from_numpy(batch.input_ids)), plain), "noise comes once for each draw"


def test_noise_is_drawn_for_training_batches_only() -> None:
    model, batch = make_model("Llama"), make_batch(packed=False)
    found, engine = objective(model, neftune_alpha=100.0), Plain(model)
    found.begin_step(0, 1)
    first = found.loss(engine, batch).nll  # type: ignore[arg-type]
    found.begin_step(0, 1)
    assert found.loss(engine, batch).nll == first  # type: ignore[arg-type]
    with engine.evaluating():
        calm = found.selection_nll(engine, batch)  # type: ignore[arg-type]
    assert abs(first - calm) > 1


def test_liger_gets_what_its_class_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the signature and the result of liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss (0.8.5)."""

    class Stand(torch.nn.Module):
        def __init__(self, reduction: str, softcap: float | None, accum_dtype: torch.dtype) -> None:
            super().__init__()
            assert (reduction, accum_dtype) == ("sum", torch.float32)
            self.softcap = softcap

        def forward(self, lin_weight: Any, _input: Any, target: Any, bias: Any = None) -> Any:
            assert len(target), "the kernel divides by the number of tokens"
            logits = torch.nn.functional.linear(_input, lin_weight, bias)
            logits = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
            return torch.nn.functional.cross_entropy(logits, target, reduction="sum")

    module = types.ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Stand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    from w2sr.training.head import attach

    for name in ("Gemma2, capped", "Granite, scaled", "Phi, with a bias"):
        plain, model, batch = make_model(name), make_model(name), make_batch(packed=False)
        expected = objective(plain).loss(Plain(plain), batch)  # type: ignore[arg-type]
        found = objective(model)
        found._head = attach(model, liger_loss())
        loss = found.loss(Plain(model), batch)  # type: ignore[arg-type]
        assert loss.nll == pytest.approx(expected.nll, rel=1e-5)
        torch.autograd.backward(loss.total)
        torch.autograd.backward(expected.total)
        torch.testing.assert_close(model.get_output_embeddings().weight.grad, plain.get_output_embeddings().weight.grad)
        filler = found.loss(Plain(model), batch.unsupervised())  # type: ignore[arg-type]
        assert (filler.nll, float(filler.total.detach())) == (0.0, 0.0)


def test_liger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(UserError, match=r"liger-kernel cannot be imported.*w2sr\[liger\]"):
        liger_loss()

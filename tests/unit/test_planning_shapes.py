"""Shapes of models of many architectures, and one message for every config.json that makes none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from w2sr.errors import UserError
from w2sr.packing.rows import Row
from w2sr.planning.activations import activations
from w2sr.planning.actual import FILE, record
from w2sr.planning.answering import prefill_bytes
from w2sr.planning.cache import cache_bytes
from w2sr.planning.layout import layout_of
from w2sr.planning.shapes import shape_from, shape_of
from w2sr.planning.states import trained
from w2sr.training.config import TrainConfig
from w2sr.training.data import save_rows
from w2sr.training.spec import TrainResult, TrainSpec
from w2sr.training.watch import METRICS

SHORT = {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
LONG = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 4}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": SHORT,
    "bloom": {**SHORT, "hidden_size": 64},
    "codegen": {**SHORT, "rotary_dim": 8},
    "gpt_bigcode": SHORT,
    "gemma3": {"text_config": {"model_type": "gemma3_text", "head_dim": 16, **LONG}, "vision_config": VISION},
    "deepseek_v2": {**LONG, **LATENT, "n_routed_experts": 4, "first_k_dense_replace": 9},
}
TRAIN = TrainConfig(num_ranks=1, max_steps=1, max_length=32, global_batch_size=1, micro_batch_size=1)


def write(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("model_type", MODELS)
def test_sizes_are_found_whatever_the_architecture_calls_them(model_type: str) -> None:
    shape = shape_from("x", {"model_type": model_type, **MODELS[model_type]})
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size, shape.num_heads) == (4, 64, 97, 4)
    assert activations(shape, 32, "bf16", recompute=False).kept > activations(shape, 32, "bf16", recompute=True).kept > 0
    assert prefill_bytes(shape, 1, 32, "bfloat16") > cache_bytes(shape, 32, "bfloat16") > 0


def test_attention_whose_values_are_narrower_than_queries_is_counted() -> None:
    """Multi-head latent attention: the output of each head is as wide as its value, 12, not as its query, 24."""
    shape = shape_from("x", {"model_type": "deepseek_v2", **MODELS["deepseek_v2"]})
    assert dict(shape.linear)["o_proj"] == (64, 4 * 12)
    activations(shape, 32, "bf16", recompute=False)


def test_adapters_go_to_linear_layers_of_any_kind_but_to_no_embedding() -> None:
    shape = shape_from("x", {"model_type": "gpt2", **SHORT})
    layout = layout_of(TRAIN.model_validate(TRAIN.model_dump() | {"lora": {"rank": 2}}), shape)
    # A layer has four matrices: 64 to 192, 64 to 64, 64 to 256 and back.
    assert trained(shape, layout).total == 4 * 2 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1], "holds a list, not an object of keys"),
        ({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 97}, "has no num_attention_heads"),
        ({"model_type": "llama", **LONG, "hidden_size": 66}, "hidden size .66. is not a multiple"),
        ({"model_type": "llama", **LONG, "hidden_size": "wide"}, "expected int, got str"),
        ({"model_type": "llama", **LONG, "num_attention_heads": 0}, "modulo by zero"),
        ({"model_type": "llama", **LONG, "num_hidden_layers": 0}, "num_hidden_layers=0, which is no number of at least 1"),
    ],
)
def test_a_config_that_makes_no_model_gets_one_message(tmp_path: Path, values: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        shape_of("x", write(tmp_path, values))


def test_bytes_that_are_no_text_get_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="is not valid JSON"):
        shape_of("x", tmp_path)


def test_a_cache_that_cannot_be_made_gets_one_message() -> None:
    """MPT's attention asks for a mask that fused kernels need not have."""
    shape = shape_from("x", {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 97})
    with pytest.raises(UserError, match="cache cannot be made without values"):
        cache_bytes(shape, 32, "bfloat16")
    with pytest.raises(UserError, match="cannot read a prompt without values"):
        prefill_bytes(shape, 1, 32, "bfloat16")


def finished(folder: Path, values: dict[str, Any]) -> tuple[TrainSpec, TrainResult]:
    """A student whose training is over, of a model with this config.json."""
    save_rows(folder / "all.rows", [Row("e0", "p0", (1, 2, 3), 1)])
    output = folder / "all-seed0"
    output.mkdir()
    (output / METRICS).write_text("")
    spec = TrainSpec("all-seed0", 0, TRAIN, str(write(folder / "model", values)), "digest", str(folder / "all.rows"), str(output))
    return spec, TrainResult(1, 3, 2, 1.0, 1.0, ((1, 1),), 1, "all steps")


def test_a_finished_student_of_any_architecture_gets_its_prediction(tmp_path: Path) -> None:
    record(*finished(tmp_path, {"model_type": "gpt2", **SHORT}))
    assert json.loads((tmp_path / "all-seed0" / FILE).read_text())["predicted"]["memory_bytes"] > 0


@pytest.mark.parametrize("error", [UserError("unknown"), KeyError("n_layer"), RuntimeError("on meta"), FileNotFoundError("all.rows")])
def test_without_a_prediction_a_student_is_finished_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("w2sr.planning.actual.predict", fails)
    with caplog.at_level(logging.WARNING):
        record(*finished(tmp_path, {"model_type": "gpt2", **SHORT}))
    assert f"all-seed0 is done; no prediction is written beside it: {error}" in caplog.text
    found = json.loads((tmp_path / "all-seed0" / FILE).read_text())
    assert (found["predicted"], found["note"]) == (None, str(error))

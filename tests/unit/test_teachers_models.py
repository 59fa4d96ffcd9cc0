"""A model that cannot be served is refused with its name and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import make_tiny_model
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.teachers.config import HFEngineConfig, SamplingConfig
from w2sr.teachers.models import generator_spec, model_folder, special_tokens_of


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def test_a_folder_is_its_own_model_and_its_digest_follows_its_bytes(tiny: Path) -> None:
    sampling = SamplingConfig(max_new_tokens=4)
    first = generator_spec("t", str(tiny), HFEngineConfig(batch_size=8), PromptStyle(), sampling)
    assert first.model == str(tiny)
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert generator_spec("t", str(tiny), HFEngineConfig(batch_size=8), PromptStyle(), sampling).model_digest != first.model_digest


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model '.*/gone': there is no such folder; give an existing folder, a hub id \(owner/name\) or"):
        model_folder(str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"model 'teacher': there is no such folder"):
        model_folder("teacher")


def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model 'nobody/nothing' is neither a folder nor to be had from the hub \(.+\); check the name"):
        model_folder("nobody/nothing")


def test_a_folder_without_a_model_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json; give the folder of a Hugging Face model"):
        model_folder(str(tmp_path / "empty"))
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no \*\.safetensors weights \(other weights: pytorch_model\.bin\)"):
        model_folder(str(tiny))


def test_damaged_weights_are_refused_when_loaded(tiny: Path) -> None:
    from w2sr.teachers.hf_engine import load_model

    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model .*tiny cannot be loaded \(.*\); give a causal language model"):
        load_model(str(tiny), "cpu")


def test_an_incomplete_checkpoint_is_refused_and_not_filled_with_random_weights(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    from w2sr.teachers.hf_engine import load_model

    weights = load_file(tiny / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(tiny), "cpu")


def test_a_model_that_needs_its_own_code_is_refused_and_the_code_is_not_run(tiny: Path) -> None:
    from w2sr.teachers.hf_engine import load_model

    (tiny / "own.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tiny / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="without code of its own"):
        load_model(str(tiny), "cpu")
    assert not (tiny / "ran").exists()


def test_special_tokens_are_those_the_tokenizer_knows(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_tiny_model(tmp_path / "model")
    assert special_tokens_of(folder) == sorted(AutoTokenizer.from_pretrained(folder).all_special_tokens)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"2": {"content": "</s>", "special": true}}}')
    assert special_tokens_of(folder) == ["</s>"]

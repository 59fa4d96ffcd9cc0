"""What a student is loaded from and written as: names, shapes, files; and which models are refused."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.meta_70b import LLAMA_70B, QWEN_72B, load_one_rank, one_rank_of
from tests.distributed.ranks import ROOT, environment
from tests.tiny import make_tiny_model
from w2sr.errors import UserError
from w2sr.training.dist import Group
from w2sr.training.export_plan import export_plan
from w2sr.training.lora_config import LoraConfig

WHOLE: dict[str, Any] = {"zero_optimization": {"stage": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def load(folder: Path) -> Any:
    from w2sr.training.engine import import_deepspeed
    from w2sr.training.engine_loading import load_model

    import_deepspeed(on_gpu=False)
    return load_model(str(folder), "fp32", WHOLE, half_on_gpu=False)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_with_more_layers_than_its_config_is_refused(folder: Path) -> None:
    change(folder, num_hidden_layers=1)
    with pytest.raises(
        UserError, match=r"9 weights have no place in the model of its config.json, model.layers.1.input_layernorm.weight first"
    ):
        load(folder)


def test_a_model_with_fewer_layers_than_its_config_is_refused(folder: Path) -> None:
    change(folder, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"9 weights of the model of its config.json are missing, model.layers.2"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change(folder, intermediate_size=48)
    with pytest.raises(UserError, match=r"mlp.down_proj.weight is \[32, 64\], but config.json makes it \[32, 48\]"):
        load(folder)


def test_a_missing_file_of_an_index_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"names model-00002-of-00002.safetensors, which is not there"):
        load(folder)


def test_the_plan_of_an_export_is_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    limit = 20_000
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "out", max_shard_size=limit)
    plan = export_plan(AutoConfig.from_pretrained(folder), "fp32", limit)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert plan.index()["weight_map"].keys() == index["weight_map"].keys()
    assert set(plan.files) == set(index["weight_map"].values())
    assert plan.total_bytes == index["metadata"]["total_size"]
    assert plan.largest_file_bytes <= limit
    assert sum(plan.size_bytes[name] for names in plan.files.values() for name in names) == plan.total_bytes


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_70B, 70.55), (QWEN_72B, 72.7)])
def test_a_70_b_export_is_planned_without_a_weight(shape: dict[str, Any], billions: float) -> None:
    from transformers import LlamaConfig, Qwen2Config

    config = (LlamaConfig if shape is LLAMA_70B else Qwen2Config)(**shape)
    plan = export_plan(config, "bf16", 5 * 10**9)
    assert plan.total_bytes / 2e9 == pytest.approx(billions, rel=1e-3)
    assert 28 <= len(plan.files) <= 40
    assert plan.largest_file_bytes <= 5e9


def test_one_rank_of_512_holds_its_shards_and_one_parameter_at_a_time() -> None:
    """A narrow Llama, in a process of its own: the fake group is global."""
    import subprocess

    code = "import tests.unit.test_training_loading as here; here.rank_of_512()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rank_of_512() -> None:
    from transformers import LlamaConfig

    narrow = {"hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 8, "num_hidden_layers": 24, "vocab_size": 8192}
    config = LlamaConfig(**LLAMA_70B | narrow)
    with one_rank_of(512):
        done = load_one_rank(config, 512, values=True)
    size = 2 * done.num_parameters
    assert size / 512 <= done.shard_bytes <= size / 512 + 2 * len(done.names)
    assert done.peak_bytes < done.shard_bytes + 2.5 * done.largest_bytes
    assert done.shard_bytes + 2.5 * done.largest_bytes < size / 8, "the bound tells a loader that holds the model from one that does not"


def model_with(**values: Any) -> Any:
    config = SimpleNamespace(num_attention_heads=6, num_key_value_heads=2, model_type="gpt_bigcode", _attn_implementation="sdpa", **values)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("size", "message"), [(4, r"ranks cannot share the 6 attention heads \(2 for keys"), (2, "by a mask of all tokens")]
)
def test_a_model_whose_attention_ranks_cannot_share_is_refused(size: int, message: str) -> None:
    import torch

    from w2sr.training.engine_sequence import SharedSequences

    with pytest.raises(UserError, match=message):
        SharedSequences(model_with(), Group(0, size, torch.device("cpu"), size))


def test_ranks_of_a_sequence_group_share_rows_and_cover_each_token_once() -> None:
    import torch

    groups = [Group(rank, 8, torch.device("cpu"), 4) for rank in range(8)]
    assert [group.data_rank for group in groups] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {group.data_size for group in groups} == {2}
    for num_tokens in range(1, 30):
        ranges = [group.own_range(num_tokens) for group in groups[:4]]
        assert ranges[0][0] == 0
        assert ranges[-1][1] >= num_tokens
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
        assert len({stop - start for start, stop in ranges}) == 1


def test_adapters_for_unknown_layers_and_without_peft_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2sr.training.engine_lora import add_adapters

    model = load(folder)
    with pytest.raises(UserError, match=r"train.lora.targets names 'q', no linear layer of the model; it has: .*q_proj"):
        add_adapters(model, LoraConfig(targets=["q"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"train.lora needs peft"):
        add_adapters(model, LoraConfig())


def test_adapters_of_layers_that_keep_their_weights_the_other_way_round_are_merged_right() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from w2sr.training.engine_lora import add_adapters
    from w2sr.training.engine_weights import published

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    adapted, merged = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    add_adapters(adapted, LoraConfig(rank=4))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    merged.load_state_dict({name: tensor.value() for name, tensor in published(adapted).items()}, strict=False)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_disk_that_is_not_there_and_a_machine_without_libaio_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2sr.training.engine import check_nvme, import_deepspeed

    import_deepspeed(on_gpu=False)
    from deepspeed.ops.op_builder.cpu import AsyncIOBuilder

    with pytest.raises(UserError, match=r"nvme_path=.*missing is not there on this node; make the folder"):
        check_nvme(tmp_path / "missing")
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_: False)
    with pytest.raises(UserError, match="offload to nvme needs libaio and its headers"):
        check_nvme(tmp_path)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_: True)
    check_nvme(tmp_path)


def test_activations_wait_in_host_memory_and_weights_do_not() -> None:
    import torch

    from w2sr.training.engine_activations import InHostMemory

    layer, hidden = torch.nn.Linear(8, 8), torch.randn(2, 5, 8, requires_grad=True)
    layer(hidden).sin().sum().backward()
    expected = hidden.grad
    hidden.grad = None
    moved = InHostMemory(pin_memory=False)
    with moved:
        total = layer(hidden).sin().sum()
    total.backward()
    assert expected is not None
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, expected)
    assert 0 < moved.num_bytes <= 2 * hidden.nbytes

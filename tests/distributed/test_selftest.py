"""`w2sr selftest` passes on a sound model, and finds what is wrong with others: real ranks, real trainings, planted faults."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import started
from tests.tiny import CHAT_TEMPLATE, make_tiny_model, make_tiny_tokenizer
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Prompt
from w2sr.run import Run
from w2sr.selftest import selftest as module
from w2sr.selftest.checks import Check
from w2sr.selftest.selftest import ACCUMULATED, EXPORTED, GATE, PACKED, RANKS, RESUMED, Options, selftest
from w2sr.tables import write_table

STRIPPING = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")


def make_run(folder: Path, model: Path, **train: Any) -> Run:
    """A run whose prompts have reference traces of different lengths."""
    answers = ["a" * (3 + 5 * (n % 7)) for n in range(24)]
    prompts = [
        Prompt(f"p{n}", "train", f"q{'x' * (n % 5)}", "1", f"<think>{answer}</think>{n}", "made up", "{}")
        for n, answer in enumerate(answers)
    ]
    (folder / "prompts").mkdir(parents=True)
    write_table(folder / "prompts" / "train.parquet", prompts, Prompt)
    values = {"num_ranks": 2, "max_steps": 4, "global_batch_size": 4, "micro_batch_size": 1, "max_length": 200, "learning_rate": 1e-3}
    config = PipelineConfig.model_validate(
        {
            "run_dir": str(folder),
            "prompts": {"source": {"kind": "file", "path": "none.jsonl"}, "num_train": 24, "num_test": 1},
            "teachers": [{"name": "t", "model": str(model), "sampling": {"max_new_tokens": 8}}],
            "student": {"model": str(model)},
            "curate": {"arms": ["gold"]},
            "train": values | train,
            "evaluate": {"sampling": {"max_new_tokens": 8}},
        }
    )
    return Run(config, folder, nullcontext)


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the ranks from the tests' server, which has the libraries loaded; test_ranks_are_processes starts them as the command does."""

    def run(asked: Path, num_ranks: int, threads: int, log: Path, timeout_s: float) -> None:  # noqa: ARG001
        with started("w2sr.selftest.rank", str(asked), num_ranks) as ranks:
            for number, rank in enumerate(ranks):
                code, output = rank.finish()
                if code:
                    raise UserError(f"rank {number} ended with code {code}: {output[-1500:]}")

    monkeypatch.setattr(module, "run_ranks", run)


def verdicts(found: list[Check]) -> dict[str, bool]:
    return {name: all(check.passed for check in found if check.name == name) for name in dict.fromkeys(check.name for check in found)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_model_passes_and_the_run_is_left_alone(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", std=0.05)
    run = make_run(tmp_path / "run", model)
    before = files_of(tmp_path)
    found = selftest(run, Options(num_rows=16), lambda _: None)
    assert verdicts(found) == dict.fromkeys([GATE, PACKED, ACCUMULATED, RANKS, RESUMED, EXPORTED], True), found
    assert not any(check.skipped for check in found)
    assert "16 rows, alone and in" in next(check.what for check in found if check.name == PACKED)
    assert files_of(tmp_path) == before


def test_a_model_whose_packed_rows_see_each_other_is_found(tmp_path: Path) -> None:
    """OPT numbers positions by the attention mask and ignores position_ids: packed rows see their neighbours. That is no made-up fault."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = make_tiny_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32,
        max_position_embeddings=512, dropout=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "model"
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = selftest(make_run(tmp_path / "run", folder), Options(num_rows=16), lambda _: None)
    assert verdicts(found)[PACKED] is False
    wrong = [check for check in found if check.name == PACKED]
    assert all("set train.packing: false" in check.note for check in wrong)
    assert all(check.difference > 100 * check.allowed for check in wrong)


def test_dropout_is_found_and_named(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", std=0.05)
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"attention_dropout": 0.3}))
    found = selftest(make_run(tmp_path / "run", model, packing=False), Options(num_rows=16), lambda _: None)
    assert verdicts(found) == {GATE: True, PACKED: True, ACCUMULATED: False, RANKS: False, RESUMED: True, EXPORTED: True}
    assert "attention_dropout=0.3" in next(check.note for check in found if check.name == RANKS)
    assert next(check for check in found if check.name == PACKED).skipped


def test_a_template_that_strips_the_reasoning_stops_at_the_gate(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", chat_template=STRIPPING)
    found = selftest(make_run(tmp_path / "run", model), Options(num_rows=16), lambda _: None)
    assert not any(verdicts(found).values())
    assert "alters the answer" in found[0].note

"""`w2sr selftest` passes on a sound model, and finds what is wrong with others: real ranks, real trainings, planted faults."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from tests.distributed.ranks import started
from tests.tiny import CHAT_TEMPLATE, make_tiny_model, make_tiny_tokenizer
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Prompt
from w2sr.run import Run
from w2sr.selftest import checks, groups
from w2sr.selftest import selftest as module
from w2sr.selftest.checks import Check
from w2sr.selftest.groups import run_ranks
from w2sr.selftest.render import as_json, render
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


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model(tmp_path / "model")
    run = make_run(tmp_path / "run", model)
    with pytest.raises(UserError, match="too few for 16 ranks; give --rows 32 or more"):
        selftest(run, Options(num_rows=8, num_ranks=16), lambda _: None)
    (tmp_path / "run" / "prompts" / "train.parquet").unlink()
    with pytest.raises(UserError, match="holds no rows to test with"):
        selftest(run, Options(), lambda _: None)
    assert main(["selftest", "configs/quickstart.yaml", f"run_dir={tmp_path}/none"]) == 2
    assert "holds no rows to test with" in capsys.readouterr().err
    assert main(["selftest", "configs/quickstart.yaml", "--ranks", "1"]) == 2
    assert "--ranks is 1; give at least 2" in capsys.readouterr().err


def test_ranks_are_processes_and_a_failure_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, sys, time; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE']); "
    (tmp_path / "good.py").write_text(script)
    (tmp_path / "bad.py").write_text(script + "sys.exit('no such tokens') if os.environ['RANK'] == '1' else time.sleep(60)")
    (tmp_path / "slow.py").write_text(script + "time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(module: str, timeout_s: float = 50) -> None:
        monkeypatch.setattr(groups, "MODULE", module)
        run_ranks(tmp_path / "asked.json", 2, 1, tmp_path / module, timeout_s)

    start("good")
    assert (tmp_path / "good.rank1.log").read_text() == "rank 1 of 2\n"
    with pytest.raises(UserError, match=r"rank 1 of 2 ended with code 1: rank 1 of 2 \| no such tokens"):
        start("bad")
    with pytest.raises(UserError, match="did not end in 1 s"):
        start("slow", timeout_s=1)


def test_a_difference_that_is_no_number_fails() -> None:
    assert not Check("x", "y", float("nan"), 1.0).passed
    assert not checks.failed("x", "why").passed
    assert not Check("x", "y", checks.relative(1.0, float("inf")), 1.0).passed
    assert checks.skipped("x", "why").passed


def test_weights_of_another_resume_fail_by_a_single_element(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for name, last in (("calm", 3.0), ("broken", 3.0000002)):
        (tmp_path / name / "model").mkdir(parents=True)
        save_file({"w": torch.tensor([1.0, 2.0, last])}, tmp_path / name / "model" / "model.safetensors")
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": last, "grad_norm": 1.0}) + "\n")
    check = checks.same_bits(RESUMED, tmp_path / "calm", tmp_path / "broken")
    assert (check.difference, check.passed) == (1.0, False)
    assert checks.same_bits(RESUMED, tmp_path / "calm", tmp_path / "calm").passed
    start = {"w": torch.tensor([1.0, 2.0, 2.0])}
    assert all(each.passed for each in checks.same_training(RANKS, tmp_path / "calm", tmp_path / "broken", start, half=False))
    (tmp_path / "broken" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 3.01, "grad_norm": 1.0}) + "\n")
    found = checks.same_training(RANKS, tmp_path / "calm", tmp_path / "broken", start, half=False)
    assert [each.what for each in found if not each.passed] == ["loss of the first step", "loss of all 1 steps"]


def test_the_table_and_the_json_say_who_failed() -> None:
    found = [Check(GATE, "rows", 0.0, 0.01), Check(PACKED, "loss", 0.2, 1e-5, "rows see each other"), checks.failed(RANKS, "rank 1 died")]
    text = render(found)
    assert text.endswith("failed: packed = unpacked, 1 = N ranks")
    assert "FAIL  packed = unpacked" in text
    assert "rows see each other" in text
    assert as_json(found)["passed"] is False
    assert as_json(found)["checks"][2]["difference"] is None
    assert render(found[:1]).endswith("all passed")

"""Export: what leaves reads back the same, in every format, and the folder is ready for the hub."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import export as launcher_export
from launcher.cli import main
from tests.unit.report_fake import config_of, finish_stage
from w2sr.config import dump_config
from w2sr.errors import UserError
from w2sr.export.card import licence_of
from w2sr.export.formats import FORMATS, Format, dataset_info, question_of, row_of, text_of
from w2sr.export.write import export_arm, read_export
from w2sr.prompting import PromptStyle
from w2sr.records import Example
from w2sr.run import Run
from w2sr.tables import write_text

HOSTILE = 'say "hi"\\n{{x}} </think>\u2028next\x85line\r\n\t| 🎉 ½ `````yaml <script>'
STYLE = {"system": "Think | first.", "user": "Q: {question}\nA:", "assistant_prefix": "<think>\n"}
# Everything a Parquet file can hold: no halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def example(number: int, text: str = HOSTILE, question: str = "2 + 3?", **changes: Any) -> Example:
    values: dict[str, Any] = {"example_id": f"e{number}", "prompt_id": f"p{number}", "question": question, "text": text, "origin": "small"}
    return Example(**(values | {"trace_id": f"t{number}", "verdict": "correct"} | changes))


def run_with(folder: Path, arm: list[Example], **student: Any) -> Run:
    """Write a run whose curate stage made the arm `all` of these rows."""
    source = {"kind": "file", "path": "/home/ada/prompts.jsonl"}
    config = config_of(folder, title="A | title", student={"model": "lab:student", "style": STYLE, **student}, prompts={"source": source})
    run = Run(config=config, folder=folder, ray=contextlib.nullcontext)
    write_text(folder / "config.yaml", dump_config(config))
    finish_stage(run, "generate/small", {}, {"traces": 60})
    finish_stage(run, "curate", {"all.parquet": (arm, Example)}, {"traces": 60})
    counts = {"candidates": 60, "kept": len(arm), "loop": 60 - len(arm)}
    write_text(folder / "curate" / "funnel.json", json.dumps({"traces": 60, "arms": {"all": counts}}))
    sets = {"test": {"questions": 120, "by_rule": {"ngram": 2}, "contaminated": ["a", "b"]}}
    write_text(
        folder / "curate" / "contamination.json",
        json.dumps({"policy": "report", "training_prompts": 2, "training_traces": 5, "hits": 7, "listed": 7, "sets": sets}),
    )
    return run


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.sampled_from(FORMATS), st.booleans(), st.none() | texts)
def test_texts_read_back_the_same(pairs: list[tuple[str, str]], form: Format, parquet: bool, system: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arm = [example(number, text, question) for number, (question, text) in enumerate(pairs)]
        run = run_with(folder, arm, style={**STYLE, "system": system})
        assert export_arm(run, "all", form, folder / "out", parquet, False, None) == len(pairs)
        rows = list(read_export(folder / "out"))
        assert [(question_of(row, form), text_of(row, form)) for row in rows] == [
            (f"Q: {question}\nA:", f"<think>\n{text}") for question, text in pairs
        ]
        if not parquet:
            assert len((folder / "out/data/train.jsonl").read_text().splitlines()) == len(pairs)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("parquet", [False, True])
def test_datasets_loads_the_folder_offline(tmp_path: Path, form: Format, parquet: bool) -> None:
    from datasets import load_dataset

    export_arm(run_with(tmp_path, [example(0), example(1, "five")]), "all", form, tmp_path / "out", parquet, False, None)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [text_of(row, form) for row in rows] == [f"<think>\n{HOSTILE}", "<think>\nfive"]
    assert rows["example_id"][:] == ["e0", "e1"]


def test_the_shapes_are_those_of_the_tools() -> None:
    style = PromptStyle(system="S", user="{question}")
    shapes = {form: row_of(example(0, "A", "Q"), style, form) for form in FORMATS}
    assert shapes["messages"]["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    assert {key: shapes["alpaca"][key] for key in ("instruction", "input", "output", "system")} == {
        "instruction": "Q",
        "input": "",
        "output": "A",
        "system": "S",
    }
    assert shapes["sharegpt"]["conversations"] == [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert shapes["trl"]["prompt"] == shapes["messages"]["messages"][:2]
    assert shapes["trl"]["completion"] == [{"role": "assistant", "content": "A"}]
    for form in FORMATS:
        info = dataset_info("set", "data/train.jsonl", form)
        assert (info is not None) == (form in ("alpaca", "sharegpt"))
        if info is not None:  # every column that LLaMA-Factory is told of is there
            assert set(info["set"]["columns"].values()) <= set(shapes[form])


def test_the_card_names_teachers_counts_filters_contamination_and_seed(tmp_path: Path) -> None:
    export_arm(run_with(tmp_path, [example(0)]), "all", "alpaca", tmp_path / "out", False, False, "cc-by-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "cc-by-4.0"
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.jsonl"}]}]
    for words in ("| small | lab:teacher | apache-2.0 | hf |", "| − loop | 59 |", "| kept in the arm | 1 |", "Run seed 0"):
        assert words in text
    assert "2 training prompts and 5 traces" in text
    assert "path: prompts.jsonl" in text
    assert "/home/ada" not in text
    assert "| test | 120 | 2 |" in text
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text())["out"]["file_name"] == "data/train.jsonl"


def test_a_model_folder_may_name_its_licence(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path)) is None
    assert licence_of(None) is None
    readme = tmp_path / "README.md"
    for content, licence in (
        ("---\nlicense: mit\n---\nhello", "mit"),
        ("hello", None),
        ("---\na: [\n---\n", None),
        ("---\n- 1\n---\n", None),
    ):
        readme.write_text(content)
        assert licence_of(str(tmp_path)) == licence


def test_traces_without_an_end_are_refused_unless_dropped(tmp_path: Path) -> None:
    run = run_with(tmp_path, [example(0), example(1, ended=False)])
    with pytest.raises(UserError, match=r"holds 1 traces that the token limit cut.*--drop-truncated"):
        export_arm(run, "all", "trl", tmp_path / "out", False, False, None)
    assert export_arm(run, "all", "trl", tmp_path / "out", False, True, None) == 1
    assert "| − cut by the token limit, not exported | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_unknown_arms_folders_in_the_way_and_empty_arms_are_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path, [example(0, ended=False)])
    with pytest.raises(UserError, match="this run has no arm 'gold'; allowed: all"):
        export_arm(run, "gold", "trl", tmp_path / "out", False, False, None)
    with pytest.raises(UserError, match="there is no row left to export"):
        export_arm(run, "all", "trl", tmp_path / "out", True, True, None)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already; give another folder"):
        export_arm(run, "all", "trl", tmp_path / "out", False, True, None)


def test_the_command_exports_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_with(tmp_path, [example(0)])
    assert main(["export", str(tmp_path), "--arm", "all", "--format", "sharegpt", "--parquet"]) == 0
    assert f"1 rows of arm all: {tmp_path}/export/all-sharegpt" in capsys.readouterr().out
    assert next(read_export(tmp_path / "export" / "all-sharegpt"))["conversations"][1]["value"] == f"<think>\n{HOSTILE}"
    assert main(["export", str(tmp_path / "nowhere"), "--arm", "all"]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_the_command_knows_every_format() -> None:
    assert launcher_export.FORMATS == FORMATS

"""Prompts: reasoning-gym, files and datasets become three disjoint sets; bad input is explained with its place."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from w2sr.errors import UserError
from w2sr.prompts.config import PromptsConfig
from w2sr.prompts.gym import scorer_of
from w2sr.prompts.rows import Candidate, question_id
from w2sr.prompts.sources import load_candidates, source_digests
from w2sr.prompts.split import split_prompts
from w2sr.records import Prompt, Split

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
CHAINS = {"name": "chain_sum", "params": {"min_terms": 5, "max_terms": 7, "min_digits": 1, "max_digits": 1}}


def config_of(source: dict[str, Any], num_train: int = 2, num_selection: int = 1, num_test: int = 1) -> PromptsConfig:
    return PromptsConfig.model_validate({"source": source, "num_train": num_train, "num_selection": num_selection, "num_test": num_test})


def split_of(config: PromptsConfig, seed: int = 0) -> tuple[dict[Split, list[Prompt]], dict[str, int]]:
    main, test = load_candidates(config)
    return split_prompts(main, test, config, seed)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "file", "path": str(path)}


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"{n} + 1?", "answer": n + 1} for n in range(start, start + count)]


def questions(prompts: list[Prompt]) -> set[str]:
    return {prompt.question for prompt in prompts}


def test_reasoning_gym_gives_disjoint_splits_with_reference_traces_and_a_working_scorer() -> None:
    splits, counts = split_of(config_of({"kind": "reasoning_gym", "tasks": [CHAINS], "seed": 3}, 20, 5, 10))
    assert [len(splits[split]) for split in ("train", "selection", "test")] == [20, 5, 10]  # type: ignore[index]
    assert counts["read"] == 35
    assert not questions(splits["train"]) & questions(splits["test"])
    prompt = splits["train"][0]
    assert prompt.reference_trace is not None
    assert prompt.reference_trace.endswith(f"#### {prompt.answer}")
    scorer = scorer_of(prompt.metadata)
    assert scorer is not None
    assert prompt.answer is not None
    assert scorer(prompt.answer) == 1.0
    assert scorer("12345") < 1.0


def test_the_tasks_of_a_mixture_share_the_prompts_by_weight() -> None:
    tasks = [CHAINS | {"weight": 3}, {"name": "gcd", "weight": 1}]
    splits, _ = split_of(config_of({"kind": "reasoning_gym", "tasks": tasks}, 30, 6, 5))
    sources = [prompt.source for prompts in splits.values() for prompt in prompts]
    assert sources.count("reasoning_gym:chain_sum") == 31
    assert sources.count("reasoning_gym:gcd") == 10
    assert all(prompt.reference_trace is None for prompt in splits["train"] if prompt.source == "reasoning_gym:gcd")


def test_a_task_with_few_questions_is_drawn_until_exhausted_and_then_refused() -> None:
    digits = {"name": "chain_sum", "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    splits, _ = split_of(config_of({"kind": "reasoning_gym", "tasks": [digits]}, 100, 0, 20))
    assert len(questions(splits["train"])) == 100
    with pytest.raises(UserError, match=r"= 410, but the source holds \d+ different questions"):
        split_of(config_of({"kind": "reasoning_gym", "tasks": [digits]}, 400, 0, 10))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "chain_sums"}, "unknown reasoning-gym task 'chain_sums': did you mean 'chain_sum'?"),
        ({"name": "chain_sum", "params": {"min_termz": 3}}, "refuses params .*unexpected keyword argument 'min_termz'"),
        ({"name": "chain_sum", "params": {"min_terms": 0}}, "min_terms must be positive"),
        ({"name": "chain_sum", "params": {"seed": 3}}, "params has 'seed', which w2sr sets itself"),
        ({"name": "arc_agi"}, "cannot be scored from a stored item"),
        ({"name": "base_conversion", "params": {"min_base": "a"}}, "refuses params"),
    ],
)
def test_a_bad_task_is_refused(task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_candidates(config_of({"kind": "reasoning_gym", "tasks": [task]}))


def test_a_task_that_fails_on_an_item_or_keeps_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.factory import DATASETS

    dataset = DATASETS["chain_sum"][0]
    config = config_of({"kind": "reasoning_gym", "tasks": [CHAINS]})
    monkeypatch.setattr(dataset, "__getitem__", lambda _, index: {"question": str(index), "answer": "1", "metadata": {1j}})
    with pytest.raises(UserError, match="keeps data that JSON cannot hold"):
        load_candidates(config)
    monkeypatch.setattr(dataset, "__getitem__", lambda *_: {}["question"])
    with pytest.raises(UserError, match="task 'chain_sum' refuses params"):
        load_candidates(config)


def test_no_scorer_without_a_reasoning_gym_item() -> None:
    assert scorer_of("{}") is None


@pytest.mark.parametrize("extension", ["jsonl", "json", "parquet"])
def test_files_of_every_format_give_the_same_prompts(tmp_path: Path, extension: str) -> None:
    rows: list[dict[str, Any]] = [
        {"q": "a?", "a": "2+2=4\n#### 4", "id": 7},
        {"q": "b?", "a": "so \\boxed{\\frac{1}{2}}", "id": 8},
        {"q": "c?", "a": "x + 1", "id": 9},
    ]
    path = tmp_path / f"data.{extension}"
    if extension == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if extension == "json" else "\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    fields = {"question": "q", "answer": "a", "id": "id", "reference_trace": "a"}
    main, _ = load_candidates(config_of({"kind": "file", "path": str(path), "fields": fields}))
    assert [(row.prompt_id, row.answer) for row in main] == [("7", "4"), ("8", "\\frac{1}{2}"), ("9", "x + 1")]
    assert main[0].reference_trace == "2+2=4\n#### 4"


def test_numbers_are_kept_as_the_text_of_their_value(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "a.jsonl", [{"question": str(n), "answer": n} for n in (72, 8.0, -0.5)] + [{"question": "?", "answer": None}]
    )
    main, _ = load_candidates(config_of(source))
    assert [row.answer for row in main] == ["72", "8.0", "-0.5", None]


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = numbered(40)
    first, _ = split_of(config_of(write_rows(tmp_path / "a.jsonl", rows), 20, 5, 10))
    random.Random(1).shuffle(rows)
    second, _ = split_of(config_of(write_rows(tmp_path / "a.jsonl", rows), 20, 5, 10))
    other, _ = split_of(config_of(write_rows(tmp_path / "a.jsonl", rows), 20, 5, 10), seed=1)
    assert first == second
    assert first != other


def test_more_training_prompts_leave_the_test_set_as_it_was(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", numbered(40))
    few, _ = split_of(config_of(source, 5, 2, 10))
    many, _ = split_of(config_of(source, 25, 5, 10))
    assert few["test"] == many["test"]


def test_repeated_questions_are_counted_and_the_counts_conserve(tmp_path: Path) -> None:
    splits, counts = split_of(config_of(write_rows(tmp_path / "a.jsonl", numbered(10) + numbered(4)), 5, 2, 2))
    assert counts == {"read": 14, "duplicates": 4, "overlap_with_test": 0, "train": 5, "selection": 2, "test": 2, "unused": 1}
    assert len(set.union(*(questions(prompts) for prompts in splits.values()))) == 9


def test_a_test_file_of_its_own_takes_its_questions_out_of_the_training_prompts(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", numbered(10))
    write_rows(tmp_path / "test.jsonl", numbered(6, start=8))
    splits, counts = split_of(config_of(source | {"test_path": str(tmp_path / "test.jsonl")}, 6, 2, 5))
    assert counts == {"read": 16, "duplicates": 0, "overlap_with_test": 2, "train": 6, "selection": 2, "test": 5, "unused": 1}
    assert not questions(splits["train"]) & questions(splits["test"])
    with pytest.raises(UserError, match="num_test = 7, but the test source holds 6 different questions"):
        split_of(config_of(source | {"test_path": str(tmp_path / "test.jsonl")}, 6, 2, 7))


def test_a_changed_file_changes_its_digest(tmp_path: Path) -> None:
    config = config_of(write_rows(tmp_path / "a.jsonl", numbered(3)))
    before = source_digests(config)
    write_rows(tmp_path / "a.jsonl", numbered(4))
    assert list(before) == [f"file {tmp_path / 'a.jsonl'}"]
    assert source_digests(config) != before
    assert source_digests(config_of({"kind": "reasoning_gym", "tasks": [CHAINS]})) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.jsonl holds no rows"),
        (
            b'{"question": "a?", "answer": 1}\n{"question": \n',
            r"data.jsonl line 2 is not valid JSON: Expecting value at column \d+, found 'the end'",
        ),
        (b'["a"]\n', "line 1 is list, not an object with named columns"),
        (b'{"frage": "a?", "answer": 1}\n', "line 1: no column 'question'; columns there: answer, frage. Say which .*fields.question"),
        (b'{"question": "a?"}\n', "line 1: no column 'answer'; columns there: question"),
        (b'{"question": " ", "answer": 1}\n', "line 1: the question .* is empty"),
        (b'{"question": null, "answer": 1}\n', "line 1: the question .* is empty"),
        (b'{"question": 5, "answer": 1}\n', r"line 1: column 'question' \(question\) holds 5, which is int; it must be text"),
        (b'{"question": "a?", "answer": [1]}\n', r"holds \[1\], which is list; it must be text or a number"),
        (b'{"question": "a?", "answer": true}\n', "holds True, which is bool"),
        (b'{"question": "a?", "answer": NaN}\n', "holds nan, which is float"),
        (b'{"question": "\\ud83d?", "answer": 1}\n', "line 1: .* holds half a character at position 0"),
        (b'{"question": "a?", "answer": ' + b"1" * 5000 + b"}\n", "line 1 is JSON that cannot be read"),
        (b"\xff\xfe\n", "data.jsonl is not UTF-8 text"),
    ],
)
def test_bad_content_of_a_file_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_candidates(config_of({"kind": "file", "path": str(tmp_path / "data.jsonl")}))


def test_files_that_cannot_be_read_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message_for(name: str) -> str:
        with pytest.raises(UserError) as raised:
            load_candidates(config_of({"kind": "file", "path": str(tmp_path / name)}))
        return str(raised.value)

    (tmp_path / "folder.json").mkdir()
    (tmp_path / "one.json").write_text('{"question": "a?"}')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "secret.jsonl").write_text("{}")
    assert "does not exist" in message_for("nothing.jsonl")
    assert "is a folder" in message_for("folder.json")
    assert "unknown extension '.csv'; allowed: .jsonl, .json, .parquet" in message_for("data.csv")
    assert "holds one dict, not a list of objects" in message_for("one.json")
    assert "is not a readable Parquet file" in message_for("bad.parquet")

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "cannot read" in message_for("secret.jsonl")


def test_ids_of_the_user_must_be_unique_and_present(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"question": f"{n}?", "answer": n, "id": n % 3} for n in range(5)]) | {
        "fields": {"id": "id"}
    }
    with pytest.raises(UserError, match=r"id '0' is used twice: .*a.jsonl line 1 and .*a.jsonl line 4"):
        split_of(config_of(source))
    write_rows(tmp_path / "a.jsonl", [{"question": "a?", "answer": 1, "id": ""}])
    with pytest.raises(UserError, match=r"line 1: the id .* is empty"):
        split_of(config_of(source))
    write_rows(tmp_path / "a.jsonl", [{"question": f"{n}?", "answer": n, "id": n} for n in range(5)])
    write_rows(tmp_path / "b.jsonl", [{"question": "other?", "answer": 1, "id": 3}])
    with pytest.raises(UserError, match=r"id '3' is used twice: .*b.jsonl line 1 and .*a.jsonl line 4"):
        split_of(config_of(source | {"test_path": str(tmp_path / "b.jsonl")}))


def test_too_few_questions_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"num_train \+ num_selection \+ num_test = 8 \+ 1 \+ 3 = 12, .* holds 10 different .*\(13 rows, 3 of them"
    ):
        split_of(config_of(write_rows(tmp_path / "a.jsonl", numbered(10) + numbered(3)), 8, 1, 3))


def test_a_test_prompt_needs_an_answer() -> None:
    rows = [Candidate(f"row {n}", question_id(str(n)), str(n), None, None, "file", "{}") for n in range(4)]
    with pytest.raises(UserError, match=r"row \d: a test prompt without a reference answer"):
        split_prompts(rows, None, config_of({"kind": "file", "path": "a.jsonl"}), 0)


def test_a_local_dataset_folder_is_read_and_its_absence_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", numbered(6))
    write_rows(tmp_path / "data" / "test.jsonl", numbered(2, start=10))
    source = {"kind": "hub", "path": str(tmp_path / "data")}
    splits, counts = split_of(config_of(source | {"test_split": "test"}, 3, 1, 2))
    assert counts["read"] == 8
    assert questions(splits["test"]) == {"10 + 1?", "11 + 1?"}
    with pytest.raises(UserError, match="no column 'q'; columns there: answer, question"):
        split_of(config_of(source | {"fields": {"question": "q"}}))
    with pytest.raises(UserError, match=r"cannot load dataset .* split 'validation': Unknown split"):
        split_of(config_of(source | {"split": "validation"}))
    with pytest.raises(UserError, match="corresponds to no data"):
        split_of(config_of(source | {"split": "train[:0]"}))
    with pytest.raises(UserError, match="give a local file or folder"):
        split_of(config_of(source | {"path": str(tmp_path / "nothing")}))


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"real data not there: {GSM8K}")
def test_gsm8k_is_read_as_it_is() -> None:
    source = {
        "kind": "file",
        "path": str(GSM8K / "train.jsonl"),
        "test_path": str(GSM8K / "test.jsonl"),
        "fields": {"reference_trace": "answer"},
    }
    splits, counts = split_of(config_of(source, 7000, 400, 1319))
    assert counts["read"] == 7473 + 1319
    assert all(prompt.answer and len(prompt.answer) < 15 for prompts in splits.values() for prompt in prompts)
    natalia = next(prompt for prompts in splits.values() for prompt in prompts if prompt.question.startswith("Natalia sold clips to 48"))
    assert natalia.answer == "72"

"""Rows files: what is written is what is read, whatever the blocks; nothing half-written or damaged is ever taken for rows."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packed import collate_padded
from tests.tiny import CHAT_TEMPLATE, make_tiny_model
from w2sr.errors import UserError
from w2sr.packing.pack import collate
from w2sr.packing.rows import Row, build_rows
from w2sr.prompting import PromptStyle
from w2sr.records import Example
from w2sr.training import data
from w2sr.training.data import (
    MIXTURE,
    ROWS,
    Block,
    RowFacts,
    facts_path,
    is_sound,
    load_rows,
    rows_digest,
    save_rows,
    write_mixture,
    write_rows,
)
from w2sr.training.tokenise import EXAMPLES_A_WORKER, Recipe, tokenise, workers_for

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=30)


def rows_of(shapes: list[tuple[int, int]], seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    ids = [tuple(rng.integers(3, 90, prefix + trace).tolist()) for prefix, trace in shapes]
    return [Row(f"é{seed}-{n}", "", ids[n], prefix, float(np.float32(0.1 * n))) for n, (prefix, _) in enumerate(shapes)]


def unit_rows(folder: Path, name: str = "a", number: int = 12, seed: int = 0) -> tuple[Path, list[Row]]:
    path, rows = folder / f"{name}{ROWS}", rows_of([(1 + n % 4, 1 + n % 7) for n in range(number)], seed)
    save_rows(path, rows)
    return path, rows


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.integers(1, 9), st.integers(1, 100))
def test_rows_survive_the_file_however_they_are_cut_into_blocks(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int]], size: int, tokens: int
) -> None:
    folder, rows = tmp_path_factory.mktemp("rows"), rows_of(shapes)
    whole = save_rows(folder / f"whole{ROWS}", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BLOCK_TOKENS", tokens)
        path = folder / f"cut{ROWS}"
        facts = write_rows(path, (Block.of(rows[start : start + size]) for start in range(0, len(rows), size)))
    store = load_rows(path)
    assert [store.row(number) for number in range(len(store))] == rows
    assert store.example_ids(np.arange(len(rows))[::-1]) == [row.example_id for row in reversed(rows)]
    assert facts == whole
    assert (facts.num_tokens, store.num_supervised) == (sum(len(row.ids) for row in rows), sum(row.num_supervised for row in rows))
    assert is_sound(path)


def test_tokens_are_views_of_the_file_and_no_copies(tmp_path: Path) -> None:
    store = load_rows(unit_rows(tmp_path)[0])
    assert not store.buffers[0].flags.owndata
    assert not store.buffers[0].flags.writeable


def test_a_mixture_is_its_parts_end_to_end(tmp_path: Path) -> None:
    (first, rows), (second, others) = unit_rows(tmp_path), unit_rows(tmp_path, "b", 5, seed=1)
    mixture = tmp_path / f"m{MIXTURE}"
    write_mixture(mixture, [(first, 0.25), (second, 0.75)])
    store = load_rows(mixture)
    assert store.parts == ((12, 0.25), (5, 0.75))
    assert [store.row(number) for number in range(17)] == rows + others
    picked = [np.array([3, 14]), np.array([16, 0, 13])]
    batch = collate(store, picked, pad_id=0, packed=True)
    for line, numbers in zip(batch.input_ids, picked):
        expected = [token for number in numbers for token in [*rows, *others][number].ids]
        assert line.tolist()[: len(expected)] == expected
    digest = rows_digest(mixture)
    write_mixture(mixture, [(first, 0.5), (second, 0.5)])
    assert rows_digest(mixture) != digest


def test_rows_without_facts_are_not_there(tmp_path: Path) -> None:
    path, _ = unit_rows(tmp_path)
    facts_path(path).unlink()
    assert RowFacts.load(path) is None
    with pytest.raises(UserError, match=r"there is no complete rows file .*a.rows.arrow; run `w2sr train`"):
        load_rows(path)
    with pytest.raises(UserError, match=r"there is no complete rows file"):
        rows_digest(path)
    with pytest.raises(UserError, match=r"there is no rows file .*mixture.json; run `w2sr train`"):
        load_rows(tmp_path / f"none{MIXTURE}")


def test_a_writer_that_dies_leaves_neither_its_rows_nor_facts_of_older_ones(tmp_path: Path) -> None:
    path, rows = unit_rows(tmp_path)

    def blocks() -> object:
        yield Block.of(rows[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, blocks())  # type: ignore[arg-type]
    assert RowFacts.load(path) is None
    assert not list(tmp_path.glob("*.aside"))


@pytest.mark.parametrize("place", ["token", "end", "prefix"])
def test_a_damaged_file_is_noticed(tmp_path: Path, place: str) -> None:
    path, rows = unit_rows(tmp_path)
    content = bytearray(path.read_bytes())
    wanted = {"token": np.array(rows[4].ids, np.int32), "prefix": np.array([row.num_prefix for row in rows], np.int32)}
    if place == "end":
        content = content[: len(content) // 2]
    else:
        content[content.index(wanted[place].tobytes())] ^= 1
    path.write_bytes(bytes(content))
    assert not is_sound(path)
    assert not is_sound(tmp_path / "none")


def examples_of(number: int) -> list[Example]:
    return [
        Example(f"e{n}", f"p{n // 3}", f"{n // 3}+1=?", f"{n}+{n}={2 * n}" + ("½" if n == 60 else "x" * (n % 50)), "t", None, None)
        for n in range(number)
    ]


def test_several_processes_make_the_same_file_as_one(tmp_path: Path) -> None:
    recipe, examples = Recipe(str(make_tiny_model(tmp_path / "model")), PromptStyle(), 60), examples_of(700)
    moved: list[int] = []
    one = tokenise(tmp_path / f"one{ROWS}", recipe, iter(examples), None, 1, moved.append)
    two = tokenise(tmp_path / f"two{ROWS}", recipe, iter(examples), None, 2, lambda _: None)
    assert one == two
    assert sum(moved) == 700
    expected = build_rows(recipe.tokenizer(), recipe.style, examples, 60, recipe.limits())
    assert (one.num_rows, one.too_long, one.unwritable) == (len(expected.kept), expected.too_long, ("e60",))
    assert one.too_long
    store = load_rows(tmp_path / f"two{ROWS}")
    assert [store.row(number) for number in range(len(store))] == [dataclasses.replace(row, prompt_id="") for row in expected.kept]


def test_a_refused_template_leaves_no_file(tmp_path: Path) -> None:
    broken = CHAT_TEMPLATE.replace("{{ eos_token }}", "")
    recipe = Recipe(str(make_tiny_model(tmp_path / "model", chat_template=broken)), PromptStyle(), 60)
    with pytest.raises(UserError, match="one end-of-turn token is needed") as refusal:
        tokenise(tmp_path / f"a{ROWS}", recipe, examples_of(3), None, 1, lambda _: None)
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)  # as it comes from another process
    assert not list(tmp_path.glob("*.rows.*"))


def test_weights_are_given_to_the_rows_of_their_examples(tmp_path: Path) -> None:
    recipe, examples = Recipe(str(make_tiny_model(tmp_path / "model")), PromptStyle(), 60), examples_of(59)
    tokenise(tmp_path / f"a{ROWS}", recipe, examples, lambda example: len(example.text) / 8, 1, lambda _: None)
    store, text_of = load_rows(tmp_path / f"a{ROWS}"), {example.example_id: example.text for example in examples}
    assert [store.row(n).weight for n in range(len(store))] == [len(text_of[name]) / 8 for name in store.example_ids(np.arange(len(store)))]


def test_the_key_of_rows_knows_tokenizer_style_limits_and_content(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    recipe = Recipe(str(model), PromptStyle(), 60)
    keys = [recipe.key("x"), recipe.key("y"), dataclasses.replace(recipe, max_length=61).key("x")]
    keys += [dataclasses.replace(recipe, style=PromptStyle(user="Q {question}")).key("x")]
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE + "{# #}")
    keys.append(recipe.key("x"))
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    keys.append(recipe.key("x"))
    assert len(set(keys)) == 6
    (model / "model.safetensors").write_bytes(b"other weights, same tokenizer")
    assert recipe.key("x") == keys[-1]


def test_processes_are_started_where_they_pay() -> None:
    assert [workers_for(number, 3) for number in (0, EXAMPLES_A_WORKER, 2 * EXAMPLES_A_WORKER, 9 * EXAMPLES_A_WORKER)] == [1, 1, 2, 3]
    assert workers_for(10**9, None) >= 1


def test_a_row_alone_is_what_its_layout_shows(tmp_path: Path) -> None:
    path, rows = unit_rows(tmp_path)
    store = load_rows(path)
    for number in (0, 7, 11):
        alone, padded = collate(store, [np.array([number])], 0, packed=False), collate_padded([rows[number]], 0)
        assert alone.input_ids.tolist() == padded.input_ids.tolist() == [list(rows[number].ids)]
        assert (alone.weights == padded.weights).all()

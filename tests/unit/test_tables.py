"""Tables: every record round-trips, a crash leaves the old file or the new one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.records import Prompt, Reject, Trace, seed_of, trace_id_of
from w2sr.tables import read_table, replacing, schema_of, write_table, write_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def test_prompts_round_trip_with_missing_values(tmp_path: Path) -> None:
    rows = [Prompt("p1", "train", "2 + 2?", "4", None, "file", "{}"), Prompt("p2", "test", "ü\n\u2028?", None, "so\n4", "file", '{"a": 1}')]
    write_table(tmp_path / "a.parquet", rows, Prompt)
    assert read_table(tmp_path / "a.parquet", Prompt) == rows


@given(texts=st.lists(TEXT, max_size=8), seed=st.integers(0, 2**63 - 1))
def test_any_text_and_seed_round_trips(tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int) -> None:
    rows = [Trace(f"t{i}", "p", "weak", i, text, "stop", 3, 4, seed, "h", "m", "hf", None) for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("tables") / "a.parquet"
    write_table(path, rows, Trace)
    assert read_table(path, Trace) == rows


def test_a_folder_of_parts_reads_in_name_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write_table(tmp_path / f"part-{number:05d}.parquet", [Reject("all", f"t{number}", "p", "loop")], Reject)
    assert [row.trace_id for row in read_table(tmp_path, Reject)] == ["t0", "t1", "t2"]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with replacing(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        read_table(tmp_path / "a.parquet", Reject)


def test_one_changed_byte_in_a_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [Reject("all", "abcdefgh", "p", "loop")], Reject)
    data = bytearray(path.read_bytes())
    data[data.index(b"abcdefgh")] ^= 1  # inside a string: it would decode without an error
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file .*checksum"):
        read_table(path, Reject)


def test_token_ids_are_lists_of_32_bits(tmp_path: Path) -> None:
    def trace(ids: list[int] | None) -> Trace:
        return Trace("t", "p", "weak", 0, "a", "stop", 3, 4, 5, "h", "m", "hf", None, position=7, token_ids=ids)

    rows = [trace([1, 2**31 - 1]), trace(None), trace([])]
    write_table(tmp_path / "a.parquet", rows, Trace)
    assert read_table(tmp_path / "a.parquet", Trace) == rows
    assert str(schema_of(Trace).field("token_ids").type) == "list<item: int32>"


def test_ids_and_seeds_depend_on_what_was_asked_only() -> None:
    ids = {trace_id_of(prompt, teacher, sample) for prompt in "ab" for teacher in "xy" for sample in range(3)}
    assert len(ids) == 12
    assert seed_of(0, "t") == seed_of(0, "t") != seed_of(1, "t")
    assert 0 <= seed_of(7, "t") < 2**63

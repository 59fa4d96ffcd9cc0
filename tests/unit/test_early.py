"""A student that was begun before its traces were all there is gone on with only if they came out as it was told."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2sr.training.early import EARLY, ROWS, Early, begin_early, settle_early


def begun(folder: Path, origin: str = "o", digests: tuple[str, ...] = ("a", "b")) -> Early:
    early = begin_early(folder, origin)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / ROWS).touch()
    for wave, digest in enumerate(digests):
        given = early.given(wave, digest)
        assert given is not None
        early = given
    return early


@pytest.mark.parametrize(
    ("origin", "digests", "kept"),
    [
        ("o", ["a", "b"], True),
        ("o", ["a", "b", "c"], True),
        ("o", ["a", "c"], False),
        ("o", ["a"], False),
        ("p", ["a", "b"], False),
    ],
)
def test_it_is_kept_if_configuration_and_rows_are_those(origin: str, digests: list[str], kept: bool, tmp_path: Path) -> None:
    begun(tmp_path / "s")
    settle_early(tmp_path / "s", origin, digests)
    assert (tmp_path / "s" / "checkpoints").exists() == kept
    assert not (tmp_path / "s" / EARLY).exists()
    assert not (tmp_path / "s" / ROWS).exists()


def test_a_student_that_was_not_begun_early_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    settle_early(tmp_path, "o", ["a"])
    assert (tmp_path / "checkpoints").exists()


def test_another_attempt_goes_on_with_the_same_origin_and_compares_every_wave(tmp_path: Path) -> None:
    begun(tmp_path / "s")
    again = begin_early(tmp_path / "s", "o")
    assert (tmp_path / "s" / "checkpoints").exists()
    assert not (tmp_path / "s" / ROWS).exists(), "its rows are given to it again"
    assert again.given(0, "a") == again
    assert again.given(1, "other") is None
    grown = again.given(2, "c")
    assert grown is not None
    assert Early.load(tmp_path / "s") == grown
    grown.void()
    settle_early(tmp_path / "s", "o", ["a", "b", "c"])
    assert not (tmp_path / "s").exists()


def test_another_configuration_begins_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun(tmp_path / "s")
    assert caplog.messages == []
    assert begin_early(tmp_path / "s", "p").digests == ()
    assert caplog.messages == ["train s: it was begun with another configuration or other rows; it begins anew"]
    assert not (tmp_path / "s" / "checkpoints").exists()

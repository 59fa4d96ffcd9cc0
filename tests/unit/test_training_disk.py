"""A full disk has one message, whoever noticed it; other errors pass."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2sr.errors import UserError
from w2sr.packing.rows import Row
from w2sr.training.data import ROWS, RowFacts, save_rows
from w2sr.training.disk import full_disk_explained


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    with open(folder / "filler", "wb", buffering=0) as file:
        while shutil.disk_usage(folder).free > 65536:
            file.write(b"x" * 4096)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_torch_on_a_full_disk_is_explained(full_disk: Path) -> None:
    import torch

    with pytest.raises(UserError, match="is full; free some space"), full_disk_explained(full_disk):
        torch.save(torch.zeros(100_000), full_disk / "state.pt")


def test_rows_on_a_full_disk_are_explained_and_not_there(full_disk: Path) -> None:
    path, rows = full_disk / f"a{ROWS}", [Row("e", "p", tuple(range(100_000)), 1)]
    with pytest.raises(UserError, match="is full; free some space"), full_disk_explained(full_disk):
        save_rows(path, rows)
    assert RowFacts.load(path) is None
    assert not path.exists()


def test_safetensors_on_a_full_disk_is_explained(full_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="is full; free some space"), full_disk_explained(full_disk):
        save_file({"weight": torch.zeros(100_000)}, full_disk / "model.safetensors")


def test_plain_files_on_a_full_disk_are_explained(full_disk: Path) -> None:
    with pytest.raises(UserError, match="is full; free some space"), full_disk_explained(full_disk):
        (full_disk / "text").write_bytes(b"x" * 1_000_000)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), RuntimeError("shapes differ")])
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])), full_disk_explained(tmp_path):
        raise error

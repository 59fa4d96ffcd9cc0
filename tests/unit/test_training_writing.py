"""The copy that a checkpoint is written from, and what is said of files that are not what was written."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.training import checkpoint
from w2sr.training.writing import Snapshot, Writer


class Alone:
    """A group of one rank, or one of several whose others found `others`."""

    def __init__(self, others: list[Any] | None = None) -> None:
        self.rank, self.world_size, self._others = 0, 1 + len(others or []), others or []

    def all(self, value: Any) -> list[Any]:
        return [value, *self._others]


@dataclass
class Scaler:
    """A mutable object in a state, as DeepSpeed's loss scaler."""

    scale: float


SHAPES = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(["float32", "bfloat16", "int64"])), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_copy_holds_the_same_bits_and_what_happens_later_does_not_reach_it(tensors: list[tuple[list[int], str]], seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    made = [torch.randint(-9, 9, shape).to(getattr(torch, dtype)) for shape, dtype in tensors]
    scaler = Scaler(2.0)
    state = {
        "module": made,
        "again": made[0],
        "group": {"lr": 0.1, "step": torch.tensor(3.0)},
        "scaler": scaler,
        "sizes": (torch.Size([2]), None),
    }
    expected = saved(state)
    snapshot = Snapshot()
    for _ in range(2):  # the second time into the buffers of the first
        snapshot.rewind()
        copy = snapshot.take(state)
        assert copy["again"] is copy["module"][0] or not made[0].numel()
    for tensor in made:
        tensor.zero_()
    state["group"]["lr"], scaler.scale = 0.7, 5.0
    assert saved(copy) == expected


def saved(state: dict[str, Any]) -> list[Any]:
    import torch

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    tensors = [(str(t.dtype), tuple(t.shape), t.flatten().tolist()) for t in [*loaded["module"], loaded["again"]]]
    return [tensors, loaded["group"]["lr"], float(loaded["group"]["step"]), loaded["scaler"], loaded["sizes"]]


def test_a_view_of_a_large_storage_is_copied_alone_and_parameters_lose_their_gradient() -> None:
    import torch

    flat = torch.arange(1000.0)
    parameter = torch.nn.Parameter(flat[10:14])
    copy = Snapshot().take({"a": flat[10:14], "b": flat.view(10, 100)[:, 1], "p": parameter})
    assert copy["a"].untyped_storage().nbytes() == 16
    assert copy["b"].tolist() == [100.0 * n + 1 for n in range(10)]
    assert copy["p"] is copy["a"]  # the same elements
    assert not copy["p"].requires_grad


def test_a_writer_in_the_background_reports_when_it_is_done_and_what_it_failed_with(tmp_path: Path) -> None:
    hold = threading.Event()
    writer = Writer(in_background=True)
    writer.write({"x": 1}, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
    writer.submit(lambda: hold.wait() and None)
    assert not writer.is_idle()
    hold.set()
    writer.wait()
    assert writer.is_idle()
    assert writer.sizes() == {str(tmp_path / "x.pt"): (tmp_path / "x.pt").stat().st_size}
    writer.write({"x": 1}, tmp_path / "none" / "x.pt")
    writer.submit(lambda: None)
    with pytest.raises(RuntimeError, match="Parent directory"):
        writer.wait()
    writer.close()


def test_every_checkpoint_is_copied_into_the_memory_of_the_first(tmp_path: Path) -> None:
    import torch

    writer, weights = Writer(in_background=True), torch.zeros(1000)
    places = []
    for step in range(3):
        weights += 1
        for name in ("a", "b"):
            writer.write({name: weights + 0}, tmp_path / f"{name}{step}.pt")
        assert writer._snapshot is not None
        places.append([buffer.data_ptr() for buffer in writer._snapshot._buffers])
        writer.submit(lambda: None)
        writer.wait()
    writer.close()
    assert places[0] == places[1] == places[2]
    assert [int(torch.load(tmp_path / f"b{step}.pt")["b"][7]) for step in range(3)] == [1, 2, 3]


def written(folder: Path) -> dict[str, int]:
    import torch

    sizes = {}
    for name in ("state/a.pt", "state/b.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.arange(5000.0)}, folder / name)
        sizes[name] = (folder / name).stat().st_size
    return sizes


def refused(folder: Path, sizes: dict[str, int], others: list[Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint._refuse_damage(Alone(others), folder, sizes)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_flipped_bit_a_cut_file_and_a_missing_one_are_found_before_anything_is_loaded(tmp_path: Path) -> None:
    import torch

    sizes = written(tmp_path)
    checkpoint._refuse_damage(Alone(), tmp_path, sizes)  # type: ignore[arg-type]
    path = tmp_path / "state" / "b.pt"
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 4
    path.write_bytes(spoilt)
    torch.load(path)  # it says nothing
    message = refused(tmp_path, sizes)
    assert "is damaged: state/b.pt has a wrong checksum in its record b/data/0" in message
    assert message.endswith(f"or remove {tmp_path} to train from the first step again")
    path.write_bytes(whole[:-100])
    assert f"state/b.pt has {len(whole) - 100} bytes where {len(whole)} were written" in refused(tmp_path, sizes)
    path.write_bytes(whole[:-100] + b"\0" * 100)
    assert "state/b.pt cannot be read (File is not a zip file)" in refused(tmp_path, sizes)
    path.unlink()
    assert "state/b.pt is missing" in refused(tmp_path, sizes)


def test_what_another_rank_found_is_said_by_all(tmp_path: Path) -> None:
    sizes = written(tmp_path)
    assert "state/z.pt is missing and 1 more files" in refused(tmp_path, sizes, [["state/z.pt is missing", "state/zz.pt is missing"]])

"""The same training on one GPU: NCCL, bf16, ZeRO-3, fused AdamW. Skipped without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.distributed.ranks import make_spec, steps_logged

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    os.environ.pop("DS_ACCELERATOR", None)


@pytest.mark.parametrize(("zero_stage", "precision"), [(2, "fp32"), (3, "bf16")])
def test_a_student_is_trained_and_exported_on_a_gpu(tmp_path: Path, zero_stage: int, precision: str) -> None:
    from w2sr.training.loop import train

    spec = make_spec(tmp_path, "gpu", num_ranks=1, use_gpu=True, zero_stage=zero_stage, precision=precision, packing=True)
    assert train(spec)
    assert steps_logged(spec) == [1, 2, 3, 4, 5]
    assert (Path(spec.output) / "model" / "model.safetensors").exists()

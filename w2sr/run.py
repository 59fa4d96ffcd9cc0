"""A run: its configuration and its folder. Every stage takes one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import Manifest
from w2sr.config import PipelineConfig, load_config
from w2sr.errors import UserError


@dataclass(frozen=True)
class Run:
    """A run's configuration and folders. `ray` opens the Ray session of this process, once, when a stage needs it."""

    config: PipelineConfig
    folder: Path
    ray: Callable[[], AbstractContextManager[None]]

    def stage(self, *names: str) -> Path:
        """Return the folder of a stage, for example `stage("train", "all-seed0")`."""
        return self.folder.joinpath(*names)

    def digest(self, *names: str) -> str:
        """Return the digest of a finished stage; raises UserError when it is not finished."""
        return Manifest.load(self.stage(*names)).digest

    def student_names(self) -> list[tuple[str, str, int]]:
        """Return (name, arm, seed) of every student this run trains, in a fixed order; `name` is its folder and label.

        `arm` may be the name of a mixture.
        """
        return [(f"{arm}-seed{seed}", arm, seed) for arm in self.config.student_arms for seed in self.config.train.seeds]


def open_folder(folder: Path) -> Run:
    """Return the run in `folder`, for reading. Raises UserError when it is not a run folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} is not a run folder (no config.yaml there); give the run_dir of a configuration, for example runs/quickstart"
        )
    return Run(config=load_config(folder / "config.yaml"), folder=folder, ray=nullcontext)

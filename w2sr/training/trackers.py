"""Weights & Biases and MLflow, through their own clients. Both read keys and addresses from their own environment variables."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from w2sr.artifacts import digest_of
from w2sr.errors import UserError
from w2sr.training.spec import TrainSpec

MLFLOW_RUN = "mlflow-run.txt"
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes what metrics.jsonl takes."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record `values` after `step` optimizer steps."""

    def close(self, finished: bool) -> None:
        """Send what is left; `finished`: the training is at its end, and not to be gone on with."""


def require_clients(trackers: Sequence[str]) -> None:
    """Raise UserError when the client of a tracker is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.watch.trackers={list(trackers)}: {name} is not installed here; pip install {name}, or take it out of the list"
            )


def open_trackers(spec: TrainSpec) -> list[Tracker]:
    """Return the trackers of a training; one that goes on writes into the run it began."""
    kinds: dict[str, Callable[[TrainSpec], Tracker]] = {"wandb": WandB, "mlflow": MLflow}
    return [kinds[name](spec) for name in spec.train.watch.trackers]


class WandB:
    """A run whose id is made from the student's folder and what decides its weights.

    Steps that are done again after a kill are equal, and W&B drops them; another training in the same folder is another run.
    """

    def __init__(self, spec: TrainSpec) -> None:
        wandb: Any = importlib.import_module("wandb")
        identity = digest_of({"folder": str(Path(spec.output).resolve()), "training": spec.identity()})[:16]
        try:
            self._run: Any = wandb.init(
                project=spec.train.watch.project, name=spec.name, id=identity, resume="allow", dir=spec.output, config=_settings(spec)
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"train.watch.trackers: W&B cannot begin a run ({_first_line(error)}); log in on all nodes (`wandb login` or WANDB_API_KEY "
                "in the cluster's env_file), set WANDB_MODE=offline, or take wandb out"
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand `values` to W&B's own process."""
        self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        """Wait until W&B has sent them."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run whose id is kept in the student's folder.

    A thread sends: the client tries for minutes to reach a server that is away. What it could not send costs the rest of the numbers there,
    until the training is started again, but not the training.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        self._error: type[Exception] = self._mlflow.exceptions.MlflowException
        self._client: Any = self._mlflow.MlflowClient()
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._lost = False
        self._run_id = self._begin(spec)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send `values`."""
        metric = self._mlflow.entities.Metric
        now = int(time.time() * 1000)
        rows = [metric(name, float(value), now, step) for name, value in values.items()]
        self._thread.submit(self._try, lambda: self._client.log_batch(self._run_id, rows))

    def close(self, finished: bool) -> None:
        """Give the run its status."""
        self._thread.submit(self._try, lambda: self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED"))
        self._thread.shutdown()

    def _begin(self, spec: TrainSpec) -> str:
        path = Path(spec.output) / MLFLOW_RUN
        if path.is_file():
            run_id = path.read_text(encoding="utf-8")
            self._thread.submit(self._try, lambda: self._client.update_run(run_id, "RUNNING"))
            return run_id
        project = spec.train.watch.project
        try:
            found = self._client.get_experiment_by_name(project)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(project)
            run = self._client.create_run(experiment, run_name=spec.name)
            for name, value in _settings(spec).items():
                self._client.log_param(run.info.run_id, name, value)
        except self._error as error:
            raise UserError(
                f"train.watch.trackers: MLflow cannot begin a run ({_first_line(error)}); set MLFLOW_TRACKING_URI on all nodes to a server "
                "that answers, or take mlflow out"
            ) from error
        path.write_text(run.info.run_id, encoding="utf-8")
        return str(run.info.run_id)

    def _try(self, send: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            send()
        except self._error as error:
            self._lost = True
            _log.warning("MLflow did not take the numbers of a step (%s); it gets no more of this attempt", _first_line(error))


def _settings(spec: TrainSpec) -> dict[str, Any]:
    """What decides the weights, as far as one line takes it."""
    return {"seed": spec.seed, "model": spec.model, **{name: str(value)[:200] for name, value in spec.train.identity().items()}}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

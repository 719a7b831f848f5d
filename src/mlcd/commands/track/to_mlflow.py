"""MLflow: a run of the experiment that is called as the project, in a file or on a server."""

from __future__ import annotations

import os
import shlex
import time
from typing import Any

# Its library would tell its makers that it is used.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mlcd.commands.track.target import LIVE, Target, names

#: Tag of a run: the training's identity.
_TAG = "mlcd.training"
#: What MLflow takes in one call, and the longest value of a parameter.
_PARAMS, _LENGTH = 100, 6000


class _Mlflow(Target):
    """`MLFLOW_TRACKING_URI` names a server; without it a SQLite file in `folder`."""

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder}/mlflow.db"
        self._client = MlflowClient(self._uri)
        experiment = self._client.get_experiment_by_name(self.run.project)
        number = experiment.experiment_id if experiment else self._new_experiment()
        asked = f"tags.`{_TAG}` = '{self.run.identity}'"
        found = self._client.search_runs([number], asked)
        self._id = found[0].info.run_id if found else self._new_run(number)
        self._client.update_run(self._id, status="RUNNING")
        params = [
            Param(name, str(value)[:_LENGTH])
            for name, value in self.run.config.items()
            if not found or name not in found[0].data.params
        ]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS])
        # A step's numbers are stored together: one name tells of which steps they are.
        known: dict[str, list[str]] = {}
        for name in sorted(found[0].data.metrics) if found else []:
            known.setdefault(name.partition("/")[0], []).append(name)
        for stream, all_names in known.items():
            # Scores may have been of another set before.
            steps = self._steps(all_names if stream == LIVE else all_names[:1])
            self.shipped[stream] = max(steps, default=0)
            if stream == LIVE:
                self.scores = steps

    def _steps(self, of: list[str]) -> set[int]:
        history = (self._client.get_metric_history(self._id, name) for name in of)
        return {int(metric.step) for metrics in history for metric in metrics}

    def _new_experiment(self) -> str:
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else f"{self.folder}/artifacts"
        return str(self._client.create_experiment(self.run.project, artifact_location=place))

    def _new_run(self, experiment: str) -> str:
        tags = {_TAG: self.run.identity, "mlcd.stage": self.run.stage}
        run: Any = self._client.create_run(experiment, tags=tags, run_name=self.run.name)
        return str(run.info.run_id)

    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        named = names(stream, values.items()).items()
        metrics = [Metric(name, float(value), now, step) for name, value in named]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> bool:
        return True

    def close(self, *, done: bool) -> None:
        if done:
            self._client.set_terminated(self._id)

    def where(self) -> str:
        return f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"


TARGET = _Mlflow

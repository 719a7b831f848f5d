"""Weights & Biases: offline, unless WANDB_MODE asks for its server."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

# Its library would tell its makers of its own faults.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from mlcd.commands.track.target import LIVE, Target, names


class _Wandb(Target):
    """A run whose id is the training's identity.

    Streams have steps of their own (`train/step`), since scores come later than the losses of their
    step. Offline each start makes a folder, and `wandb sync` joins them by the id. What a start has
    written is sure only when its folder is closed: that of a killed one is removed, and its steps
    are shipped again.
    """

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mode = os.environ.get("WANDB_MODE", "offline")
        self._remove_unfinished()
        self._run = wandb.init(
            project=self.run.project,
            id=self.run.identity,
            name=self.run.name,
            dir=str(self.folder),
            config=dict(self.run.config),
            mode=cast("Any", self._mode),
            resume="allow",
            settings=wandb.Settings(
                console="off", silent=True, disable_code=True, disable_git=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            ),
        )  # fmt: skip
        noted = max(self.scores, default=0)
        for stream in (self.run.stage, LIVE, "evaluate"):
            self._run.define_metric(f"{stream}/step")
            self._run.define_metric(f"{stream}/*", step_metric=f"{stream}/step")
            if self._mode == "online":
                self.shipped[stream] = int(self._run.summary.get(f"{stream}/step") or 0)
        # Of live scores the server tells the last alone: what came after the notes is there.
        self._unnoted = range(noted + 1, self.shipped.get(LIVE, 0) + 1)
        if self._mode == "offline":
            self.memory["open"] = Path(self._run.dir).parent.name

    def has(self, stream: str, step: int, values: dict[str, float]) -> bool:
        known = self._mode == "online" and stream == LIVE and step in self._unnoted
        return known or super().has(stream, step, values)

    def _remove_unfinished(self) -> None:
        name = self.memory.pop("open", None)
        if isinstance(name, str) and name.startswith("offline-run-") and "/" not in name:
            shutil.rmtree(self.folder / "wandb" / name, ignore_errors=True)

    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        self._run.log({**names(stream, values.items()), f"{stream}/step": step})

    def flush(self) -> bool:
        return False

    def close(self, *, done: bool) -> None:
        self._run.finish()
        self.memory.pop("open", None)

    def where(self) -> str:
        if self._mode == "offline":
            return f"wandb sync {shlex.quote(str(self.folder / 'wandb'))}/offline-run-*"
        return f"wandb run {self.run.identity} of project {self.run.project}"


TARGET = _Wandb

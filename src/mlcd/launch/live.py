"""Live scores: `mlcd score` as a process of its own beside rank 0, which reads checkpoints.

Training does not wait for it and computes nothing for it. It shares no memory with it, so that
weights and numbers of steps are the same with it and without; its failure is told and changes
nothing. It ends with rank 0, however that ends: its standard input is then closed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import is_ours
from mlcd.utils.processes import ending
from mlcd.utils.records import parse_line

#: In the state folder while training runs, then beside the weights.
SCORES = "live.jsonl"
#: In the state folder: the words of the scoring process, and why it ended before its time.
_LOG, _FAILED = "live.log", "live.failed"
#: Seconds for a killed process to be gone; one that a dead disk holds is left to itself.
_PATIENCE = 5.0


class Live(BaseModel):
    """How scores are taken: `config` is a section evaluate as JSON, `every` counts steps.

    `device`: cpu, cuda, …; `threads`: of the CPU. `wait`: seconds that rank 0, when all is trained
    and written, waits for scores that are still to come. `nice`: how far their process stands back
    for others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str
    every: int
    device: str
    threads: int
    wait: float = 60.0
    nice: int = 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What live scores are of, and where they are computed."""
    add = parser.add_argument
    add("--live", default="", metavar="FILE|JSON",
        help="take live scores as evaluate.live_every and its neighbors say: config.yaml, or the "
        "section evaluate as JSON; changes no weight [none]")  # fmt: skip
    add("--live-device", default="cpu", metavar="DEVICE",
        help="where they are computed, beside rank 0: cpu, cuda, cuda:1, … [cpu]")  # fmt: skip
    add("--live-threads", type=int, default=1, metavar="N",
        help="CPU threads for them, at the lowest priority [1]")  # fmt: skip
    add("--live-wait", type=float, default=60.0, metavar="SECONDS",
        help="how long the end of the training waits for the last of them [60]")  # fmt: skip


def planned(arguments: argparse.Namespace) -> Live | None:
    """Return how scores are taken, None if they are not. Raises :class:`UserError`."""
    from mlcd.config import Evaluate, parse_section

    if not arguments.live:
        return None
    if arguments.live_threads < 1:
        raise UserError("--live-threads: expected at least 1")
    if not 0 <= arguments.live_wait <= 3600:
        raise UserError("--live-wait: expected 0 to 3600 seconds")
    section = parse_section("evaluate", arguments.live, {})
    assert isinstance(section, Evaluate)
    if not section.live_every:
        return None
    values = json.loads(section.for_live())
    (dataset,) = values["datasets"]
    if not dataset["path"].startswith("sklearn:"):
        # What is in it the scorer looks at; ranks may start elsewhere.
        if not Path(dataset["path"]).exists():
            raise UserError(
                f"{dataset['path']}: no such file or folder; evaluate.live_dataset names it"
            )
        dataset["path"] = str(Path(dataset["path"]).resolve())
    return Live(
        config=json.dumps(values), every=section.live_every,
        device=arguments.live_device, threads=arguments.live_threads, wait=arguments.live_wait,
    )  # fmt: skip


@contextlib.contextmanager
def scoring(live: Live | None, state: Path) -> Iterator[None]:
    """Score the checkpoints in `state` while the block lasts, on rank 0."""
    if live is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    scorer = _Scorer(live, state)
    try:
        yield
    except BaseException:
        scorer.end()
        raise
    scorer.finish(live.wait)


class _Scorer:
    """The process that scores; why it ended before its time is told, whenever that was."""

    def __init__(self, live: Live, state: Path) -> None:
        self._state = state
        self._before = 0
        self._process = self._start(live)
        self._given_up = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _start(self, live: Live) -> subprocess.Popen[bytes] | None:
        state = self._state
        with contextlib.suppress(OSError):
            (state / _FAILED).unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "mlcd", "score", str(state / "checkpoints"), "--follow",
            "--nice", str(live.nice),
            "--output", str(state / SCORES), "--config", live.config, "--every", str(live.every),
            "--device", live.device, "--threads", str(live.threads),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(live.threads)}
        if live.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        try:
            with (state / _LOG).open("ab") as log:
                self._before = log.tell()
                return subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
                )
        except OSError as error:
            _tell(state, f"not started: {error}")
            return None

    def _watch(self) -> None:
        if self._process and (status := self._process.wait()) and not self._given_up.is_set():
            why = _last_word(self._state / _LOG, self._before)
            _tell(self._state, why or f"ended with {ending(status)}")

    def finish(self, seconds: float) -> None:
        """Have it score what is left, and wait so long for that."""
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"end\n")
                self._process.stdin.flush()
        self._watcher.join(seconds)
        if self._watcher.is_alive():
            LOGGER.warning(
                "live scores: the last ones were not there in %.0f s, and are given up (%s)",
                seconds, self._state / _LOG,
            )  # fmt: skip
        self.end()

    def end(self) -> None:
        """End it, whatever it does: one that is stopped or hangs would not see its input close.

        What it writes is whole at any moment.
        """
        self._given_up.set()
        if self._process and self._process.stdin:
            self._process.kill()
            self._watcher.join(_PATIENCE)
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _tell(state: Path, why: str) -> None:
    LOGGER.warning("live scores: %s; the training does without them (%s)", why, state / _LOG)
    with contextlib.suppress(OSError):
        (state / _FAILED).write_text(f"{why}\n")


def _last_word(log: Path, start: int) -> str:
    """Return the last error in a log from byte `start` on, '' if there is none."""
    with contextlib.suppress(OSError):
        for line in reversed(log.read_bytes()[start:].decode(errors="replace").splitlines()[-50:]):
            if " ERROR " in line:
                return line.partition(" ERROR ")[2]
    return ""


def is_awaited(step: int, every: int, state: Path) -> bool:
    """Return whether the score of the checkpoint after `step` steps is still to come."""
    return step % every == 0 and not (state / _FAILED).exists() and step not in _scored(state)


def _scored(state: Path) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in (state / SCORES).read_text().splitlines():
            found.add(int(parse_line(line)["step"]))
    return found


def publish(state: Path, output: Path) -> None:
    """Copy the scores beside the weights; those of an earlier training go."""
    target = output / SCORES
    if (state / SCORES).exists():
        with atomic_path(target) as temporary:
            temporary.write_bytes((state / SCORES).read_bytes())
    elif target.exists() and is_ours(target):
        target.unlink()

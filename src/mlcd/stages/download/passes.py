"""Passes over a chunk: all rows first, then those whose failure may have passed.

Everything that is known stands in the proofs of the passes (:mod:`.shards`), so a killed run goes
on where it was by reading them again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

import mlcd
from mlcd.config import Download
from mlcd.stages.download import shards
from mlcd.stages.download.child import FAILED, last_lines, supervise
from mlcd.stages.download.reasons import REASONS, TRANSIENT
from mlcd.stages.download.url_list import UrlList, has_credentials, requestable
from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json
from mlcd.utils.logging import LOGGER
from mlcd.utils.processes import ending

_CODE = {reason: code for code, reason in enumerate(REASONS)}
_LOG = "img2dataset.log"
_REPORT_SECONDS = 5.0


@dataclass
class Outcome:
    """What is known of each of the n rows; about 80 bytes per row.

    `reason` uint8 [n] (index into REASONS, 0 is success), `passes` int32 [n] (tries made); of
    images that arrived: `at_pass`, `shard` int32 [n], `offset`, `size` int64 [n], `sha256`
    S32-like void [n], `width`, `height` int32 [n].
    """

    reason: np.ndarray
    passes: np.ndarray
    at_pass: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    sha256: np.ndarray
    width: np.ndarray
    height: np.ndarray

    @classmethod
    def unknown(cls, refused: np.ndarray) -> Outcome:
        """Return the state before any pass: as `refused` (codes uint8 [n]), else `deadline`."""
        rows = len(refused)
        reason = np.where(refused, refused, _CODE["deadline"]).astype(np.uint8)
        narrow = [np.zeros(rows, np.int32) for _ in range(5)]
        passes, at_pass, shard, width, height = narrow
        offset, size = np.full(rows, -1, np.int64), np.zeros(rows, np.int64)
        digest = np.zeros(rows, "V32")
        return cls(reason, passes, at_pass, shard, offset, size, digest, width, height)

    def counts(self) -> dict[str, int]:
        """Return the number of rows by reason, `success` first, without zeros."""
        counted = np.bincount(self.reason, minlength=len(REASONS))
        named = {REASONS[code] or "success": int(counted[code]) for code in range(len(REASONS))}
        return {name: count for name, count in named.items() if count}

    def transient(self) -> np.ndarray:
        """Return bool [n]: rows whose failure another pass may cure."""
        return np.isin(self.reason, [_CODE[reason] for reason in TRANSIENT])


class Before(Protocol):
    """A finished chunk to which passes add: what is known of its rows, and its images."""

    def outcome(self) -> Outcome:
        """Return the state before these passes; `at_pass` is 0 and `shard` the tar."""

    def image(self, tar: int, offset: int, size: int, digest: bytes) -> bytes:
        """Return an image that had arrived. Raises :class:`UserError` if it has changed."""


class Passes:
    """The passes of one chunk in its state folder; `processes` and `threads` say how wide."""

    def __init__(
        self,
        state: Path,
        source: UrlList,
        section: Download,
        *,
        processes: int,
        threads: int,
        lock: int,
        before: Before | None = None,
    ) -> None:
        self.state = state
        #: What an earlier run has left, if these passes add to it.
        self.before = before
        self.source = source
        self.section = section
        self.processes = processes
        self.threads = threads
        self.log = state / _LOG
        self._lock = lock
        self._until = time.monotonic() + section.deadline
        self._refused = np.zeros(source.rows, np.uint8)
        for batch in source.batches(65_536):
            for place, url in enumerate(batch.urls, start=batch.start):
                if requestable(url) is None:
                    word = "credentials" if has_credentials(url) else "bad_url"
                    self._refused[place] = _CODE[word]

    def folder(self, number: int) -> Path:
        """Return the folder of pass `number` (from 1)."""
        return self.state / f"pass-{number:02d}"

    def run(self) -> Outcome:
        """Run all passes that are due, or until the deadline; return what is known then.

        A chunk that fell short has `section.passes` more passes in its next run.
        """
        earlier = self._earlier_passes()
        outcome = self.outcome()
        for number in range(1, earlier + self.section.passes + 1):
            folder = self.folder(number)
            if not shards.is_planned(folder):
                wanted = outcome.transient()
                if not wanted.any() or self._remaining() <= 0:
                    break
                if number > earlier + 1:
                    self._wait(self.section.backoff * 2 ** (number - earlier - 2))
                shards.plan(folder, self.source, wanted, self.processes)
            if shards.unproven(folder):
                self._run_pass(number)
                outcome = self.outcome()
                if shards.unproven(folder):
                    break
        return outcome

    def fell_short(self) -> None:
        """Give the next run passes of its own: those of this one are used up."""
        done = sum(shards.is_planned(path) for path in self.state.glob("pass-*"))
        write_json(self.state / "round.json", {"passes_before": done})

    def outcome(self) -> Outcome:
        """Read the proofs of all passes. What has arrived once stays arrived."""
        known = Outcome.unknown(self._refused) if self.before is None else self.before.outcome()
        tried = known.passes.copy()
        number = 1
        while shards.is_planned(self.folder(number)):
            for shard, proof in shards.proofs(self.folder(number)):
                rows = proof["row"].to_numpy()
                codes = np.array([_CODE[word] for word in proof["reason"].to_pylist()], np.uint8)
                new = known.reason[rows] != 0
                rows = rows[new]
                known.reason[rows] = codes[new]
                known.passes[rows] = tried[rows] + number
                known.at_pass[rows] = number
                known.shard[rows] = shard
                for name in ("offset", "size", "width", "height"):
                    getattr(known, name)[rows] = proof[name].to_numpy()[new]
                digests = proof["sha256"].combine_chunks().to_numpy(zero_copy_only=False)
                known.sha256[rows] = np.array(digests, "V32")[new]
            number += 1
        return known

    def _earlier_passes(self) -> int:
        path = self.state / "round.json"
        return read_json(path)["passes_before"] if path.exists() else 0

    def _remaining(self) -> float:
        """Return the seconds in which transfers may still start."""
        margin = min(30.0, 0.1 * self.section.deadline)
        return self._until - margin - time.monotonic()

    def _wait(self, seconds: float) -> None:
        seconds = min(seconds, max(0.0, self._remaining()))
        if seconds >= 1:
            LOGGER.info("waiting %.0f s before the next pass", seconds)
        time.sleep(seconds)

    def _run_pass(self, number: int) -> None:
        """Run the child until all shards are proven or the deadline is over.

        It is started again if it ends early, as long as that brings at least one shard; else
        :class:`UserError` with the end of its log.
        """
        folder = self.folder(number)
        report = _Report(folder, f"{self.source.path.stem} pass {number}")
        LOGGER.info(
            "%s: %d rows; img2dataset writes its log to %s", report.label, report.rows, self.log
        )
        job = {
            "section": self.section.model_dump(mode="json"),
            "processes": self.processes,
            "threads": self.threads,
            "until": time.monotonic() + self._remaining(),
        }
        command = [sys.executable, "-m", "mlcd.stages.download.fetch", str(folder), json.dumps(job)]
        while left := shards.unproven(folder):
            status = supervise(
                command,
                log=self.log,
                until=self._until,
                environment=_environment(),
                keep_open=[self._lock],
                tick=report.update,
            )
            report.update(final=True)
            if status is None:
                LOGGER.warning(
                    "%s: deadline of %g s is over; all its processes were ended",
                    report.label,
                    self.section.deadline,
                )
                return
            if len(shards.unproven(folder)) == len(left):
                raise self._child_failed(status)

    def _child_failed(self, status: int) -> UserError:
        """Return why img2dataset ended before a shard was done, as far as it said so."""
        if disk.is_full(self.state):
            # It may not have been able to say so: its log is on that disk.
            return disk.full(self.state)
        lines = last_lines(self.log, 12)
        if lines and lines[-1].startswith(FAILED):
            return UserError(lines[-1].removeprefix(FAILED))
        for line in lines:
            LOGGER.error("img2dataset: %s", line)
        last = lines[-1] if lines else "no output"
        return UserError(
            f"{self.log}: img2dataset ended by {ending(status)} before a shard was done "
            f"({last}); see this log, fix the cause and rerun"
        )


class _Report:
    """Progress from the proofs as they appear: a bar on a terminal, log lines elsewhere."""

    def __init__(self, folder: Path, label: str) -> None:
        self.label = label
        self.rows = shards.planned_rows(folder)
        self._folder = folder
        self._seen: set[str] = set()
        self._done = self._arrived = 0
        self._told = -1
        self._start = self._last = time.monotonic()
        self._bar = tqdm(
            total=self.rows, desc=label, unit="row", disable=not sys.stderr.isatty(), leave=False
        )
        self._count()
        self._before = self._done

    def _count(self) -> None:
        for path in (self._folder / "proof").glob("[0-9]*.parquet"):
            if path.name not in self._seen:
                self._seen.add(path.name)
                reasons = pq.read_table(path, columns=["reason"])["reason"].to_pylist()
                self._done += len(reasons)
                self._arrived += reasons.count("")
                self._bar.update(len(reasons))

    def update(self, *, final: bool = False) -> None:
        """Count new proofs; say where the pass is every few seconds and at its end."""
        now = time.monotonic()
        if not final and now - self._last < (0.5 if not self._bar.disable else _REPORT_SECONDS):
            return
        self._last = now
        self._count()
        if final:
            self._bar.close()
        if self._bar.disable and not (final and self._told == self._done):
            self._told = self._done
            written = sum(path.stat().st_size for path in (self._folder / "shards").glob("*.tar"))
            LOGGER.info(
                "%s: %d of %d rows done, %d arrived, %d failed, %.0f rows/s, %.1f MB in tars",
                self.label, self._done, self.rows, self._arrived, self._done - self._arrived,
                (self._done - self._before) / max(1e-3, now - self._start), written / 1e6,
            )  # fmt: skip


def _environment() -> dict[str, str]:
    """Return the child's environment: this package importable, one thread per library."""
    source = str(Path(mlcd.__file__).parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        **os.environ,
        **single,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # img2dataset's resizer would ask the network for a newer version at each import.
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }

"""Training checkpoints: whole tensors in safetensors, one folder per step, readable at any number
of ranks.

    step_00000100/
      encoder.safetensors       weights and moments of the encoder, whole, float32 (rank 0)
      rank_00000.safetensors    a rank's rows of the centers and of their moments, and its buffers;
                                of further heads as well, if the run has any
      complete.json             step, config section and identity of the run, image size, rows of
                                each piece, SHA-256 of each file; last

A folder is written under a temporary name and renamed when its last file is there. Nothing in it is
a pickle. Writing runs beside training: only the copy to main memory stops it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mlcd.utils import disk, fencing
from mlcd.utils.errors import UserError
from mlcd.utils.files import follow_umask, fsync_directory, read_json, sha256_file
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record, write_record

FORMAT = 2
RECORD = "complete.json"
ENCODER = "encoder.safetensors"
#: Seconds that rank 0 waits for another rank's piece before it gives a checkpoint up.
_PATIENCE = 1800.0
#: Checkpoints beyond the newest that stay because somebody wants them: each has the run's size.
_MOST_WANTED = 2
# Files that are read and hashed at a time, at most.
_HASHED = 8


def piece_name(rank: int) -> str:
    """Return the file name of a rank's piece."""
    return f"rank_{rank:05d}.safetensors"


def step_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


@dataclasses.dataclass
class HeadRows:
    """Rows of a further head on one rank: its classes `start` … `stop` − 1.

    `rows`: tensors whose first axis is these classes.
    """

    start: int
    stop: int
    rows: dict[str, torch.Tensor]


@dataclasses.dataclass
class Snapshot:
    """What one rank puts into a checkpoint: CPU tensors that training no longer touches.

    `rows`: tensors whose first axis is the classes `start` … of this rank (none in a run without a
    classifier). `buffers`: the encoder's running statistics on this rank. `encoder`: weights and
    moments, on rank 0 only. `image_size`: pixels of the images that the encoder's weights fit, 0
    for a tower of text. `heads`: further classifiers by name, each divided over the same ranks;
    where there are none, a checkpoint has the bytes that it had before there could be any.
    """

    step: int
    start: int
    rows: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    encoder: dict[str, torch.Tensor] | None
    image_size: int
    heads: dict[str, HeadRows] = dataclasses.field(default_factory=dict)

    def piece(self) -> dict[str, Any]:
        """Return which classes this rank holds, as complete.json has it."""
        stop = self.start + len(next(iter(self.rows.values()), ()))
        piece: dict[str, Any] = {"start": self.start, "stop": stop}
        if self.heads:
            piece["heads"] = {name: [one.start, one.stop] for name, one in self.heads.items()}
        return piece

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of this rank's piece by their names in it."""
        named = {f"rows/{key}": value for key, value in self.rows.items()}
        named |= {f"buffers/{key}": value for key, value in self.buffers.items()}
        for name, head in self.heads.items():
            named |= {f"heads/{name}/{key}": value for key, value in head.rows.items()}
        return named


class CheckpointWriter:
    """Writes checkpoints of a run into `folder`, keeping the newest `keep` (None: all).

    Every rank makes one and calls :meth:`save` at the same steps. Ranks meet in the file system: a
    rank's file is there when it is whole, and rank 0 renames the folder when all are. On rank 0
    the constructor removes what a killed run left half-written and what lies after `resumed`, the
    step that training resumes from (a broken checkpoint); no rank may save before that. `identity`
    and `section` (the config) are recorded, and where the run began (`provenance`). `wanted`: see
    :func:`prune`.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        section: dict[str, Any],
        *,
        rank: int,
        world_size: int,
        keep: int | None = None,
        resumed: int | None = None,
        provenance: dict[str, Any] | None = None,
        wanted: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.folder = folder
        self._wanted = wanted
        self._identity = identity
        self._section = section
        self._provenance = provenance or {}
        self._rank = rank
        self._world_size = world_size
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            unwanted = list(folder.glob(".step_*"))
            if resumed is not None:
                unwanted += [path for path in steps(folder) if path.name > step_name(resumed)]
            for path in unwanted:
                shutil.rmtree(path)

    def save(self, snapshot: Snapshot) -> None:
        """Write in the background; waits first for the checkpoint before, if it is not done."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,))
        self._thread.start()

    def wait(self) -> None:
        """Wait for the last :meth:`save`. Raises what went wrong in it (a full disk, say)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:  # raised again in the training thread
            self._error = error

    def _write(self, snapshot: Snapshot) -> None:
        with disk.writing(self.folder):
            self._write_files(snapshot)

    def _write_files(self, snapshot: Snapshot) -> None:
        name = step_name(snapshot.step)
        temporary, final = self.folder / f".{name}", self.folder / name
        temporary.mkdir(exist_ok=True)
        path = temporary / piece_name(self._rank)
        files = {path.name: _save(snapshot.tensors(), path)}
        sums = temporary / f"{self._rank}.json"
        if self._rank:
            said = temporary / f".{self._rank}.json"
            said.write_text(json.dumps({**snapshot.piece(), "files": files}))
            # The last touch: once rank 0 sees the name, it renames the folder.
            said.rename(sums)
            return
        assert snapshot.encoder is not None
        files[ENCODER] = _save(snapshot.encoder, temporary / ENCODER)
        pieces = [snapshot.piece()]
        for rank in range(1, self._world_size):
            said = self._said(temporary / f"{rank}.json")
            files |= said.pop("files")
            pieces.append(said)
        for rank in range(1, self._world_size):
            (temporary / f"{rank}.json").unlink()
        record = {
            "format": FORMAT,
            "step": snapshot.step,
            "image_size": snapshot.image_size,
            "identity": self._identity,
            "section": self._section,
            "pieces": pieces,
            "files": dict(sorted(files.items())),
        }
        if self._provenance:
            record["provenance"] = self._provenance
        write_record(temporary / RECORD, record)
        fencing.check()
        temporary.rename(final)
        fsync_directory(self.folder)
        if self._keep is not None:
            prune(self.folder, self._keep, self._wanted)

    def _said(self, path: Path) -> Any:
        end = time.monotonic() + _PATIENCE
        while not path.exists():
            if time.monotonic() > end:
                raise UserError(f"{path}: another rank did not write its part of the checkpoint")
            time.sleep(0.02)
        return read_json(path)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> str:
    """Write safetensors, fsynced; return the file's SHA-256.

    The hash is of the tensors in memory, computed while the disk takes the file, and not of a file
    that is read again: what the disk got wrong is then noticed too.
    """
    fencing.check()
    whole = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(whole, path)
    follow_umask(path)
    with path.open("rb+") as handle, ThreadPoolExecutor(1) as pool:
        written = pool.submit(os.fsync, handle.fileno())
        digest = _sha256(handle, whole)
        written.result()
    return digest


def _sha256(handle: BinaryIO, tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a safetensors file: its header as written, and `tensors` behind it."""
    start = handle.read(8)
    header = handle.read(int.from_bytes(start, "little"))
    places = {
        name: about["data_offsets"]
        for name, about in json.loads(header).items()
        if name != "__metadata__"
    }
    digest = hashlib.sha256(start + header)
    for name in sorted(places, key=places.__getitem__):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def steps(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, oldest first, whole or not."""
    # A copy under another name (step_00000100_keep) is its owner's: neither read nor removed.
    found = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))
    return sorted(path for path in found if path.is_dir())


def prune(folder: Path, keep: int, wanted: Callable[[int], bool] = lambda step: False) -> None:
    """Remove all checkpoints but the newest `keep`.

    Of the others the newest two whose step is `wanted` stay too: somebody still reads them.
    """
    older = steps(folder)[:-keep]
    held = [path for path in older if wanted(int(path.name.removeprefix("step_")))]
    for path in older:
        if path not in held[-_MOST_WANTED:]:
            # Gone at once for whoever looks; what a kill leaves of it, the next writer removes.
            going = path.with_name(f".{path.name}")
            path.rename(going)
            shutil.rmtree(going)


def newest(folder: Path, identity: str | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None; a broken one is skipped with a warning."""
    for path in reversed(steps(folder)):
        try:
            return Checkpoint(path, identity)
        except UserError as error:
            LOGGER.warning("%s; resuming from the checkpoint before", error)
    return None


class Checkpoint:
    """A whole checkpoint, opened by folder; all SHA-256 are checked unless `verify` is false.

    Attributes: `path`, `step` (finished steps), `image_size`, `section` (the run's config),
    `provenance` (what is known of its first weights), `identity`, `pieces` (a dict with the class
    range `start`, `stop` for each rank that wrote it, and `heads`: name → its range, if there are
    any). Raises :class:`UserError` if a file is missing or damaged, or if it belongs to a run of
    another `identity`.
    """

    def __init__(self, path: Path, identity: str | None = None, *, verify: bool = True) -> None:
        self.path = path
        record = read_record(path / RECORD, "its stage")
        try:
            if record["format"] != FORMAT:
                raise UserError(f"{path}: a checkpoint of another version; remove it")
            self.step: int = record["step"]
            self.image_size: int = record["image_size"]
            self.pieces: list[dict[str, Any]] = record["pieces"]
            self.identity: str = record["identity"]
            self.section: dict[str, Any] = record["section"]
            self.provenance: dict[str, Any] = record.get("provenance", {})
            if verify:
                self._verify(record["files"])
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise UserError(f"{path}: not a whole checkpoint ({error}); remove it") from None
        if identity is not None and self.identity != identity:
            raise UserError(f"{path}: of a run with another config or other inputs; remove it")

    def _verify(self, files: dict[str, str]) -> None:
        """Raise :class:`UserError` for a file that has not its SHA-256."""
        # Hashing leaves the interpreter to others: as many files at a time as there are cores.
        cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(max(1, min(cores, _HASHED, len(files)))) as pool:
            found = pool.map(sha256_file, [self.path / name for name in files])
            for (name, expected), digest in zip(files.items(), found, strict=True):
                if digest != expected:
                    raise UserError(f"{self.path / name}: damaged; remove the checkpoint")

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.pieces[-1]["stop"])

    @property
    def heads(self) -> dict[str, int]:
        """Further heads: name → number of classes."""
        return {name: int(ends[1]) for name, ends in self.pieces[-1].get("heads", {}).items()}

    def encoder(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the encoder's tensors whose names begin with `prefix` (``weight/`` and so on)."""
        with safe_open(self.path / ENCODER, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def rows(self, start: int, stop: int, head: str | None = None) -> dict[str, torch.Tensor]:
        """Return every row tensor for classes `start` … `stop` − 1, whichever pieces hold them.

        Of the further head called so, if one is named. Raises :class:`UserError` if there is none.
        """
        if head is not None and head not in self.heads:
            raise UserError(f"{self.path}: has no head {head!r}; remove it")
        prefix = "rows/" if head is None else f"heads/{head}/"
        parts: dict[str, list[torch.Tensor]] = {}
        for rank, piece in enumerate(self.pieces):
            begin, end = (piece["start"], piece["stop"]) if head is None else piece["heads"][head]
            first, last = max(start, begin), min(stop, end)
            # The first piece gives names and shapes even to a rank without any class.
            if first >= last and not (start >= stop and rank == 0):
                continue
            inside = slice(first - begin, max(first, last) - begin)
            try:
                with safe_open(self.path / piece_name(rank), "pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        if name.startswith(prefix):
                            part = file.get_slice(name)[inside]
                            parts.setdefault(name.removeprefix(prefix), []).append(part)
            except SafetensorError as error:
                raise UserError(f"{self.path / piece_name(rank)}: {error}; remove it") from None
        return {
            name: found[0] if len(found) == 1 else torch.cat(found) for name, found in parts.items()
        }

    def buffers(self, rank: int, world_size: int) -> dict[str, torch.Tensor]:
        """Return the encoder's running statistics for a rank.

        At the number of ranks that wrote them, each gets its own. At another, all get the mean:
        a running mean is linear in what it has seen, so the mean over ranks is what one rank with
        all batches would have tracked.
        """
        if world_size == len(self.pieces):
            return self._buffers_of(rank)
        return mean_buffers([self._buffers_of(other) for other in range(len(self.pieces))])

    def _buffers_of(self, rank: int) -> dict[str, torch.Tensor]:
        # By key: a piece also has the rank's centers and their moments, some 10 GB at a million.
        with safe_open(self.path / piece_name(rank), "pt") as file:
            return {
                name.removeprefix("buffers/"): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (not a mapping)
                if name.startswith("buffers/")
            }


def mean_buffers(buffers: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean over ranks of floating-point buffers; counters are equal on all ranks."""
    return {
        name: torch.stack([one[name].double() for one in buffers]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in buffers[0].items()
    }

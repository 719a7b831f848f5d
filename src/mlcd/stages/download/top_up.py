"""Try the failed rows of a finished chunk again, some day later, and add what arrives now.

Tars that gain an image are written anew, in the state folder, with the table and, last, the
manifest; then they are put in place of the old ones, the manifest last. A run that is killed before
has changed nothing; one that is killed in between is finished by the next, whichever it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.config import Download
from mlcd.data.image_store import MANIFEST, TABLE, ImageStore, tar_name
from mlcd.data.tars import read_at
from mlcd.stages.download import shards
from mlcd.stages.download.passes import Outcome, Passes
from mlcd.stages.download.reasons import REASONS, table
from mlcd.stages.download.seal import (
    described,
    line_of,
    row_table,
    write_manifest,
    write_tar,
)
from mlcd.stages.download.url_list import Batch, UrlList, without_credentials
from mlcd.utils.errors import UserError
from mlcd.utils.files import fsync_directory
from mlcd.utils.logging import LOGGER, progress

_CODE = {reason: code for code, reason in enumerate(REASONS)}


class Finished:
    """A finished chunk: what is known of each row, and the images that had arrived."""

    def __init__(self, target: Path, source: UrlList, section: Download) -> None:
        if not (target / MANIFEST).exists():
            raise UserError(
                f"{target}: no finished chunk to be topped up; run the stage download first"
            )
        self.store = ImageStore(target)
        self._table = self.store.table()
        manifest = self.store.manifest
        if "asked" not in manifest:
            raise UserError(
                f"{target}: made by an earlier version, which does not say how; run the stage "
                "download again"
            )
        # Longer time-outs or more passes are as good as those of before.
        if manifest["asked"] != json.loads(section.for_images()):
            raise UserError(
                f"{target}: its images were fetched with other keys of the section download; give "
                "those as --config, or run the stage download again"
            )
        if manifest["rows"] != source.rows or any(
            without_credentials(url) != known
            for batch in source.batches(1 << 16)
            for url, known in zip(batch.urls, self._urls(batch), strict=True)
        ):
            raise UserError(f"{source.path}: not the list of {target}; give the one it was made of")

    def _urls(self, batch: Batch) -> list[str]:
        part: list[str] = self._table["url"].iloc[batch.start : batch.start + len(batch.urls)]
        return list(part)

    def outcome(self) -> Outcome:
        """Return what is known of the rows."""
        frame = self._table
        digests = np.array([bytes.fromhex(word or "00" * 32) for word in frame["sha256"]], "V32")
        return Outcome(
            reason=np.array([_CODE[word] for word in frame["reason"]], np.uint8),
            passes=frame["passes"].to_numpy(np.int32, copy=True),
            at_pass=np.zeros(len(frame), np.int32),
            shard=frame["tar"].to_numpy(np.int32, copy=True),
            offset=frame["offset"].to_numpy(np.int64, copy=True),
            size=frame["size"].to_numpy(np.int64, copy=True),
            sha256=digests,
            width=frame["width"].to_numpy(np.int32, copy=True),
            height=frame["height"].to_numpy(np.int32, copy=True),
        )

    def image(self, tar: int, offset: int, size: int, digest: bytes) -> bytes:
        """Return an image that had arrived."""
        path = self.store.tars[tar]
        return read_at(path, offset, size, int.from_bytes(digest[:8], "big"))


def top_up(target: Path, passes: Passes, finished: Finished) -> None:
    """Run the passes over rows whose failure may pass; add what arrives to the chunk `target`."""
    before = finished.outcome()
    again = int(before.transient().sum())
    if not again:
        LOGGER.info("%s: no row failed for a reason that may pass; nothing to try", target.name)
        return
    outcome = passes.run()
    fresh = (before.reason != 0) & (outcome.reason == 0)
    if not fresh.any():
        LOGGER.info(
            "%s: none of %d rows arrived now; nothing is changed, nothing is stale",
            target.name, again,
        )  # fmt: skip
        return
    sealed = passes.state / "sealed"
    shutil.rmtree(sealed, ignore_errors=True)
    try:
        counts = _seal(sealed, target, passes, finished, outcome, fresh)
    except shards.DamagedShard as damage:
        shards.discard(damage.folder, damage.index)
        raise UserError(f"{damage}; run the same command again, which fetches it anew") from None
    put_in_place(passes.state, target)
    LOGGER.info(
        "%s: %d of %d rows arrived now: %s",
        target.name, int(fresh.sum()), again, table(counts),
    )  # fmt: skip
    LOGGER.info(
        "%s: stale are its embeddings and labels, then the clusters (unless cluster.centers keeps "
        "them), the training, and what follows; mlcd run makes them again",
        target.name,
    )


def _seal(
    sealed: Path,
    target: Path,
    passes: Passes,
    finished: Finished,
    outcome: Outcome,
    fresh: np.ndarray,
) -> dict[str, int]:
    """Write the tars that gain an image, the table and last the manifest; return the counts."""
    sealed.mkdir(parents=True)
    known = finished.store.manifest
    size = passes.section.rows_per_tar
    tars: list[dict[str, Any]] = []
    with row_table(sealed) as add:
        batches = passes.source.batches(size)
        for batch in progress(batches, total=len(known["tars"]), label="seal", unit="tar"):
            index = len(tars)
            if fresh[batch.start : batch.start + len(batch.urls)].any():
                path = sealed / tar_name(index)
                lines = write_tar(path, index, batch, passes, outcome)
                tars.append(described(path, lines))
            else:
                lines = _as_before(index, batch, outcome)
                tars.append(known["tars"][index])
            add(lines)
    counts = outcome.counts()
    write_manifest(
        sealed, passes.source, counts, tars, set(), known["request"],
        known["asked"], target.name,
    )  # fmt: skip
    return counts


def _as_before(index: int, batch: Batch, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the lines of a tar that gains nothing; only the number of passes is new."""
    lines = []
    for place, (url, caption) in enumerate(zip(batch.urls, batch.captions, strict=True)):
        row = batch.start + place
        line = line_of(row, url, caption, outcome)
        if line["status"] == "success":
            line |= {"tar": index, "offset": int(outcome.offset[row])}
        lines.append(line)
    return lines


def put_in_place(state: Path, target: Path) -> None:
    """Move what :func:`top_up` has sealed in `state` to `target`, if all of it is there."""
    sealed = state / "sealed"
    if not (sealed / MANIFEST).exists():
        return
    tars = sorted(path for path in sealed.iterdir() if path.suffix == ".tar")
    for path in (*tars, sealed / TABLE, sealed / MANIFEST):
        # A run that was killed here has moved some of them.
        if path.exists():
            path.replace(target / path.name)
    fsync_directory(target)
    shutil.rmtree(sealed)

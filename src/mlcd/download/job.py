"""One chunk from its list to its manifest."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from mlcd import lease
from mlcd.config import Download
from mlcd.download import shards
from mlcd.download.child import lock
from mlcd.download.passes import Outcome, Passes
from mlcd.download.reasons import PASSING, table
from mlcd.download.seal import seal
from mlcd.download.source import UrlList
from mlcd.errors import UserError
from mlcd.files import read_json, sha256_json, state_dir
from mlcd.progress import LOGGER
from mlcd.stores.images import MANIFEST, TABLE, ImageStore

#: How often one shard may be fetched again because its bytes changed on disk.
_DAMAGES = 2
#: Seconds that the processes of a run that was killed may take to end.
_LOCK_WAIT = 15.0


def download(
    urls: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Download,
    *,
    processes: int = 0,
    threads: int = 64,
) -> None:
    """Fetch the list `urls` into the folder `output` (tars, rows.parquet, manifest.json).

    `processes` 0 is one for each core. Raises :class:`UserError` if the list is unusable, if
    fewer rows arrive than `section.min_success`, or if img2dataset does not run. What arrived is
    then kept beside the output, and a rerun tries what failed in passing.
    """
    source = UrlList(urls)
    target = Path(os.path.normpath(Path.cwd() / output))
    if target.exists() and not target.is_dir():
        raise UserError(f"{output}: is a file; give the folder of the chunk as --output")
    request = sha256_json([section.model_dump(mode="json"), source.digest, target.name])
    files = [target / MANIFEST, target / TABLE]
    with lease.writing(target, request, files=files) as wanted:
        if wanted:
            _download(source, target, section, request, processes, threads)


def _download(
    source: UrlList, target: Path, section: Download, request: str, processes: int, threads: int
) -> None:
    # With a suffix to lose, since the names of chunks may have dots.
    state = state_dir(f"{target}.chunk", target.name, section.fetched(), source.digest)
    # Fetching processes of a run that was killed hold this one until they are gone.
    held = lock(state / "lock", _LOCK_WAIT)
    if held is None:
        raise UserError(f"{state}: another run fetches this chunk; wait for it or end it")
    with held:
        if _complete(target, request):
            LOGGER.info("%s: complete, nothing to do", target)
        else:
            width = processes or _cores()
            passes = Passes(
                state, source, section, processes=width, threads=threads, lock=held.fileno()
            )
            _fetch_and_seal(target, passes, request)
        _remove_states(state)


def _cores() -> int:
    """Return the number of cores this process may use; a batch system grants fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fetch_and_seal(target: Path, passes: Passes, request: str) -> None:
    damages: Counter[tuple[Path, int]] = Counter()
    while True:
        outcome = passes.run()
        _require_success(target, passes, outcome)
        try:
            manifest = seal(target, passes, outcome, request)
        except shards.DamagedShard as damage:
            place = (damage.folder, damage.index)
            damages[place] += 1
            if damages[place] > _DAMAGES:
                raise UserError(f"{damage}, again and again; check this disk") from None
            LOGGER.warning("%s; fetched again", damage)
            shards.discard(*place)
            continue
        LOGGER.info(
            "%s: %d rows in %d tars: %s",
            target.name, manifest["rows"], len(manifest["tars"]), table(manifest["counts"]),
        )  # fmt: skip
        return


def _require_success(target: Path, passes: Passes, outcome: Outcome) -> None:
    counts = outcome.counts()
    rows, arrived = passes.source.rows, counts.get("success", 0)
    if arrived >= passes.section.min_success * rows:
        return
    passes.fell_short()
    again = sum(count for reason, count in counts.items() if reason in PASSING)
    mend = f"rerun to try {again} of them again" if again else "check the list"
    raise UserError(
        f"{target}: {arrived} of {rows} rows arrived ({arrived / rows:.1%}), and "
        f"download.min_success is {passes.section.min_success:g}: {table(counts)}; {mend}, or "
        "lower download.min_success"
    )


def _complete(target: Path, request: str) -> bool:
    """True if `target` holds the whole result of the same request."""
    if not (target / MANIFEST).exists():
        return False
    try:
        return read_json(target / MANIFEST).get("request") == request and bool(ImageStore(target))
    except UserError:
        return False


def _remove_states(state: Path) -> None:
    """Remove this chunk's state, and those that it left under other configs."""
    stem = state.name[: -len("-0123456789abcdef")]
    for folder in state.parent.iterdir():
        if re.fullmatch(re.escape(stem) + r"-[0-9a-f]{16}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)

"""One chunk from its list to its manifest."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from mlcd.config import Download
from mlcd.data.image_store import MANIFEST, TABLE, ImageStore
from mlcd.data.local_table import LocalTable, is_local
from mlcd.launch import lease
from mlcd.stages.download import shards
from mlcd.stages.download.child import lock
from mlcd.stages.download.index import index
from mlcd.stages.download.passes import Outcome, Passes
from mlcd.stages.download.reasons import TRANSIENT, table
from mlcd.stages.download.seal import TAR, seal
from mlcd.stages.download.top_up import Finished, put_in_place
from mlcd.stages.download.top_up import top_up as top_up_chunk
from mlcd.stages.download.url_list import UrlList, compare_with_prepare
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claimed_folder
from mlcd.utils.processes import check_workers

#: How often one shard may be fetched again because its bytes changed on disk.
_DAMAGES = 2
#: Seconds that the processes of a run that was killed may take to end.
_LOCK_WAIT = 15.0
#: Folder of a top-up's passes, below the state folder.
_TOP_UP = "top-up"


def download(
    urls: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Download,
    *,
    processes: int = 0,
    threads: int = 64,
    top_up: bool = False,
) -> None:
    """Fetch the list `urls` into the folder `output` (tars, rows.parquet, manifest.json).

    A table of images on disk is indexed (:mod:`.index`), and nothing is fetched. With `top_up` the
    failed rows of a finished chunk are tried again (:mod:`.top_up`).

    `processes` 0 is one for each core. Raises :class:`UserError` if the list is unusable, if
    fewer rows arrive than `section.min_success`, or if img2dataset does not run. What arrived is
    then kept beside the output, and a rerun tries what failed for a transient reason.
    """
    check_workers(processes, "--processes")
    source = _source(urls)
    if top_up and isinstance(source, LocalTable):
        raise UserError(f"{urls}: images on disk; --top-up tries URLs again, and these have none")
    target = Path(os.path.normpath(Path.cwd() / output))
    if target.exists() and not target.is_dir():
        raise UserError(f"{output}: is a file; give the folder of the chunk as --output")
    request = sha256_json([section.model_dump(mode="json"), source.digest, target.name])
    files = [target / MANIFEST, target / TABLE]
    names = "|".join([re.escape(MANIFEST), re.escape(TABLE), TAR.pattern])
    with (
        claimed_folder(target, (MANIFEST, TABLE), names),
        lease.writing(target, request, top_up, files=files) as wanted,
    ):
        if wanted:
            _download(source, target, section, request, processes, threads, top_up)


def _source(urls: str | os.PathLike[str]) -> UrlList | LocalTable:
    if not is_local(urls):
        return UrlList(urls)
    table = LocalTable(urls)
    compare_with_prepare(table.path, table.digest)
    return table


def _download(
    source: UrlList | LocalTable,
    target: Path,
    section: Download,
    request: str,
    processes: int,
    threads: int,
    again: bool,
) -> None:
    # With a suffix to lose, since the names of chunks may have dots.
    state = state_dir(f"{target}.chunk", target.name, section.fetched(), source.digest)
    # Fetching processes of a run that was killed hold this one until they are gone.
    held = lock(state / "lock", _LOCK_WAIT)
    if held is None:
        raise UserError(f"{state}: another run fetches this chunk; wait for it or end it")
    with held:
        # What a top-up has fetched, if it was killed while it put that in place.
        put_in_place(state / _TOP_UP, target)
        if again and isinstance(source, UrlList):
            finished = Finished(target, source, section)
            more = Passes(
                state / _TOP_UP, source, section, processes=processes or _cores(),
                threads=threads, lock=held.fileno(), before=finished,
            )  # fmt: skip
            top_up_chunk(target, more, finished)
        elif _complete(target, request):
            LOGGER.info("%s: complete, nothing to do", target)
        elif isinstance(source, LocalTable):
            target.mkdir(parents=True, exist_ok=True)
            manifest = index(
                source, target, section, request, state, processes=processes or _cores()
            )
            LOGGER.info("%s: %d images: %s", target.name, source.rows, table(manifest["counts"]))
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
    again = sum(count for reason, count in counts.items() if reason in TRANSIENT)
    fix = f"rerun to try {again} of them again" if again else "check the list"
    raise UserError(
        f"{target}: {arrived} of {rows} rows arrived ({arrived / rows:.1%}), and "
        f"download.min_success is {passes.section.min_success:g}: {table(counts)}; {fix}, or "
        "lower download.min_success"
    )


def _complete(target: Path, request: str) -> bool:
    """True if `target` holds the whole result of the same request, every byte as it was written."""
    if not (target / MANIFEST).exists():
        return False
    try:
        store = ImageStore(target)
    except UserError:
        return False
    if store.manifest.get("request") != request:
        return False
    if changed := store.changed():
        LOGGER.warning("%s: not what was written; the chunk is downloaded again", changed)
    return changed is None


def _remove_states(state: Path) -> None:
    """Remove this chunk's state, and those that it left under other configs."""
    stem = state.name[: -len("-0123456789abcdef")]
    for folder in state.parent.iterdir():
        if re.fullmatch(re.escape(stem) + r"-[0-9a-f]{16}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)

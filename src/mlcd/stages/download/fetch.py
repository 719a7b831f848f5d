"""The child process of a pass: img2dataset's downloader over the shards that have no proof yet.

    python -m mlcd.stages.download.fetch PASS_FOLDER JOB     (JOB is JSON, see :class:`Job`)

img2dataset's `Downloader` and `WebDatasetSampleWriter` do the work; what an image is, and how it is
resized, says :mod:`.resizer`. Its own `download`
is left out: it starts a logger process and workers that each import everything again (five to ten
seconds of processor time for a chunk of any size) and starts new workers every five shards. Here
the workers are forked after one import.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mlcd.config import Download
from mlcd.stages.download import shards, transport
from mlcd.stages.download.child import FAILED
from mlcd.stages.download.hosts import Hosts
from mlcd.stages.download.resizer import Resizer
from mlcd.utils import disk
from mlcd.utils.errors import UserError

# Its companion albumentations would ask the network for a newer version of itself, and wait.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# webdataset would import torch for its data loaders, which takes as long as all the rest. Here
# nothing loads data, and img2dataset neither needs torch nor depends on it.
_HIDE_TORCH = "torch" not in sys.modules
if _HIDE_TORCH:
    # What makes an import fail, says the import system's documentation; its type does not.
    sys.modules["torch"] = None  # type: ignore[assignment]
from img2dataset.downloader import Downloader  # noqa: E402
from img2dataset.writer import WebDatasetSampleWriter  # noqa: E402

if _HIDE_TORCH:
    del sys.modules["torch"]

_ROBOTS = ["noai", "noimageai", "noindex", "noimageindex"]
#: Digits of img2dataset's shard names.
_DIGITS = 5


class Fetcher:
    """Fetches shards of one pass into its folder. It is sent to the workers with each shard."""

    def __init__(self, folder: Path, section: Download, threads: int, rows: int) -> None:
        self.folder = folder
        self.section = section
        self.downloader = Downloader(
            sample_writer_class=WebDatasetSampleWriter,
            resizer=Resizer(section),
            thread_count=threads,
            save_caption=False,
            extract_exif=False,
            output_folder=str(folder / "shards"),
            column_list=["row", "expected", "url"],
            timeout=section.timeout,
            # Only the digits of img2dataset's keys follow from it.
            number_sample_per_shard=max(2, rows),
            oom_shard_count=_DIGITS,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=section.user_agent_token,
            disallowed_header_directives=_ROBOTS if section.respect_opt_out else None,
        )

    def __call__(self, index: int) -> None:
        """Fetch shard `index` and prove it; a tar that is not whole is fetched once more."""
        for last in (False, True):
            shards.discard(self.folder, index)
            # img2dataset removes the list that it was given.
            given = self.folder / "shards" / f"{index:05d}.arrow"
            shutil.copyfile(shards.input_path(self.folder, index), given)
            self.downloader.download_shard((index, str(given)))
            try:
                return shards.prove(self.folder, index, as_served=self.section.image_size is None)
            except shards.DamagedShard as damage:
                if last:
                    raise
                print(f"fetched again: {damage}", flush=True)


def _die_with_parent() -> None:
    """End the whole process group when the parent is gone: its end of our stdin then closes."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    # Only as the leader of a group of our own: by hand, the group would be the user's shell.
    if os.getpgrp() == os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def main(folder: Path, job: dict[str, Any]) -> None:
    """Fetch every shard of the pass in `folder` that has no proof yet."""
    section = Download.model_validate(job["section"])
    hosts = Hosts(
        section.requests_per_host,
        section.retry_after,
        section.dns_cache,
        job["until"],
        folder.parent / "hosts.json",
    )
    limits = transport.Limits(
        section.transfer_timeout,
        section.max_bytes,
        until=job["until"],
        private_addresses=section.private_addresses,
        keep_alive=section.keep_alive,
    )
    transport.install(limits, hosts)
    try:
        _fetch(folder, section, job)
    finally:
        hosts.keep()


def _fetch(folder: Path, section: Download, job: dict[str, Any]) -> None:
    """Fetch the shards in as many processes as there is work for."""
    pending = shards.unproven(folder)
    fetcher = Fetcher(folder, section, job["threads"], shards.planned_rows(folder))
    processes = min(job["processes"], len(pending))
    if processes <= 1:
        for index in pending:
            fetcher(index)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        for done in as_completed([pool.submit(fetcher, index) for index in pending]):
            done.result()


if __name__ == "__main__":
    _die_with_parent()
    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except Exception as error:
        told = error if isinstance(error, UserError) else disk.explained(error, sys.argv[1])
        if told is None:
            raise
        sys.exit(f"{FAILED}{told}")

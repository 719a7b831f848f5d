"""What a killed Snakemake's jobs have made: recorded as its own, or removed.

Of a job that Snakemake itself sees to its end it records section, code and inputs, by which it
tells later that a result is stale. A job that outlives its Snakemake leaves a whole result and no
such record, and would then count as fresh for ever. Here these results are recorded with the
section that the killed one had (see :func:`mlcd.launch.snakemake.announce`), or removed where that
would be wrong: if the code has changed since.
"""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from mlcd.launch.snakemake import announced, announced_at, sources_unchanged
from mlcd.utils.files import write_json
from mlcd.utils.logging import LOGGER


def adopt(folder: Path, snakefile: str | None) -> None:
    """Adopt or remove the results of the killed Snakemake's jobs that nobody has recorded.

    Done while its lock lies in `folder` and after its last job has ended. Being killed in here does
    no harm: what is not recorded then is found again.
    """
    found = unrecorded(folder)
    if not found:
        return
    killed = announced(folder)
    if killed and sources_unchanged(killed) and _record(folder, snakefile, found, killed):
        LOGGER.info("adopted %d files that jobs of the earlier run have made", len(found))
        return
    LOGGER.info(
        "%d files of the earlier run's jobs are made again: the code, or what it read, has changed",
        len(found),
    )
    for name in found:
        (folder / name).unlink(missing_ok=True)


def unrecorded(folder: Path) -> list[str]:
    """Return the whole outputs, newer than the start of the killed Snakemake, without a record.

    Its lock lists all that it was to make.
    """
    known = folder / ".snakemake"
    began = announced_at(folder)
    found = []
    for lock in known.glob("locks/*.output.lock"):
        for name in lock.read_text().splitlines():
            path = folder / name
            # Those marked as incomplete are Snakemake's to remove.
            if not path.is_file() or _note(known / "incomplete", name).exists():
                continue
            note, made = _note(known / "metadata", name), path.stat().st_mtime_ns
            if made >= began and not (note.exists() and note.stat().st_mtime_ns >= made):
                found.append(name)
    return found


def _note(folder: Path, name: str) -> Path:
    """Return where Snakemake keeps its note on the output `name` (snakemake.persistence.file)."""
    text = urlsafe_b64encode(name.encode()).decode()
    width = (os.pathconf(folder, "PC_NAME_MAX") if folder.exists() else 255) - 1
    parts = [text[start : start + width] for start in range(0, len(text), width)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])


def _record(folder: Path, snakefile: str | None, names: list[str], killed: dict[str, Any]) -> bool:
    """Have Snakemake record the files as made by the killed one's config; False if it cannot."""
    config = folder.resolve() / ".snakemake" / "mlcd-config.json"
    write_json(config, killed["config"])
    command = [
        sys.executable, "-m", "snakemake", "--touch", "--force", "--ignore-incomplete", "--nolock",
        # The lock is the killed one's, and its announcement must stay until all is accounted for.
        "--no-hooks", "--directory", str(folder), "--configfile", str(config),
        "--profile", "none", "--workflow-profile", "none", "--cores", "1",
        # Nothing but these files: an input of another section is left as stale as it is.
        "--rerun-triggers", "mtime",
        *(["--snakefile", snakefile] if snakefile else []), "--", *names,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    config.unlink()
    if done.returncode != 0:
        LOGGER.info("%s", (done.stdout + done.stderr).strip())
    return done.returncode == 0

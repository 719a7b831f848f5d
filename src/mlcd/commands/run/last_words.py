"""The last words of a finished run: where to look, and what next."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path

from mlcd.launch.snakemake import announced


def last_words(folder: Path) -> Iterator[str]:
    """Iterate over lines about the run that ended in `folder`; none where its results are not."""
    config = (announced(folder) or {}).get("config")
    name = config.get("results") if isinstance(config, dict) else None
    if not isinstance(name, str):
        return
    results = folder / name
    if (results / "evaluate" / "summary.md").is_file():
        yield f"scores: {results / 'evaluate' / 'summary.md'}"
    if (results / "report" / "overview.html").is_file():
        yield (
            f"the run in a minute: {results / 'report' / 'overview.html'} "
            "(with all pages in one file: the same command with --report report.html)"
        )
    where = shlex.quote(str(results))
    explore = f"; clusters and images: mlcd explore {where}" if _explores() else ""
    yield f"state, time, disk: mlcd status {where}{explore}"


def _explores() -> bool:
    return importlib.util.find_spec("mlcd.commands.explore") is not None

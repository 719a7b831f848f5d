"""Part `provenance`: what made these results: config, versions, revision, hashes.

Nothing here depends on the machine's name, the time or an absolute path.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import mlcd
from mlcd.config import Report
from mlcd.data import hdf5
from mlcd.stages.report.page import Drawing, code, render, table
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import file_identity


def draw(
    section: Report, resolved: str, files: Sequence[str], own: Sequence[str] | None = None
) -> Drawing:
    """Collect the resolved config, versions, git revision and a hash of each of `files`.

    Of `own`, people's own embeddings or labels, which may be terabytes, the hash is of size, first
    and last MiB.
    """
    hashes = [_hash(path) for path in files]
    hashes += [
        {"file": _shown(path), "kind": "size, first and last MiB", "hash": file_identity(path)}
        for path in own or []
    ]
    versions = package_versions()
    source = revision(Path(mlcd.__file__).parent)
    config, shown = _config(resolved)
    numbers = {
        "mlcd": mlcd.__version__,
        "revision": source,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "files": hashes,
        "config": config,
        "packages": versions,
    }
    made = f"revision {source['commit'][:12]}" if source else "an installed package"
    title = f"Made by mlcd {mlcd.__version__}, {made}"
    lead = (
        "Config, code and packages from which these results follow. Equal inputs and equal "
        "versions give equal hashes on the same kind of machine."
    )
    warnings = []
    if source and source["modified"]:
        warnings.append("The source tree was modified since that revision.")
    about = [
        ("git revision", code(source["commit"]) if source else "not a git checkout"),
        ("python", numbers["python"]),
        ("platform", numbers["platform"]),
    ]
    rows = [(entry["file"], entry["kind"], code(entry["hash"])) for entry in hashes]
    body = render(
        "provenance.html",
        about=table(["what", "value"], about),
        hashes=table(["file", "hash of", "SHA-256"], rows),
        config=shown,
        packages=table(["package", "version"], list(versions.items())),
    )
    return Drawing(title, lead, body, warnings=warnings, numbers=numbers)


def package_versions() -> dict[str, str]:
    """Return name → version of mlcd's installed requirements and theirs, sorted by name."""
    found: dict[str, str] = {}
    waiting = ["mlcd"]
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        waiting += [
            re.split(r"[\s\[;<>=!~(]", line, maxsplit=1)[0] for line in distribution.requires or []
        ]
    if not found:  # run from a source tree that was never installed: name all there is
        found = {
            _normal(d.metadata["Name"]): d.version
            for d in importlib.metadata.distributions()
            if d.metadata["Name"]
        }
    return dict(sorted(found.items()))


def _normal(name: str) -> str:
    """Return a package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def revision(folder: Path) -> dict[str, Any] | None:
    """Return commit and whether tracked files differ from it, or None outside a git checkout."""
    try:
        commit = git(folder, "rev-parse", "HEAD")
        # An installed package may lie in a checkout of something else: ours tracks this file.
        if not git(folder, "ls-files", "__init__.py"):
            return None
        return {"commit": commit, "modified": bool(git(folder, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(folder: Path, *words: str) -> str:
    """Return what git says in `folder`. Raises OSError, or a SubprocessError of git's."""
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def _hash(path: str) -> dict[str, str]:
    """Return a file's hash, computed from its bytes; of HDF5 files the fingerprint, compared."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run the stage that writes it first")
    kind = "content (fingerprint)" if Path(path).suffix == ".h5" else "bytes"
    digest = hdf5.verified_fingerprint(path)
    return {"file": _shown(path), "kind": kind, "hash": digest}


def _shown(path: str) -> str:
    """Return a path without the machine's part: relative ones as given, others by their name."""
    return Path(path).name if Path(path).is_absolute() else Path(path).as_posix()


def _config(path: str) -> tuple[Any, str]:
    """Return the resolved config as a value and as its own text."""
    try:
        shown = Path(path).read_text(encoding="utf-8")
        return yaml.safe_load(shown), shown
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write the resolved config first") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML or JSON ({line})") from None

"""Which code a stage's results depend on, as one hash for Snakemake's `params`.

Snakemake does not look into `src/`. Each rule therefore carries the hash of the modules that its
stage imports, found by following the import statements; comments and blank lines do not count.
Modules that cannot change a result (command line, messages, launching) are left out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_ROOT = Path(__file__).parent

#: Modules that no result depends on. A section's values reach a rule as its other parameter.
NEUTRAL = frozenset(
    {
        "cli",
        "cluster.cost",
        "cluster.plan",
        "compat",
        "config",
        "errors",
        "files",
        "driver",
        "gang",
        "head",
        "jobs",
        "launch",
        "lease",
        "notice",
        "plan",
        "progress",
        "record",
        "run",
        "slurm",
        "sources",
        "startup",
        "story",
        "surroundings",
        "takeover",
        "usage",
    }
)


def modules_of(stage: str) -> list[str]:
    """Return the module names (below mlcd, sorted) that `mlcd.<stage>` imports, itself included."""
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if {name, name.split(".")[0]} & NEUTRAL or name in found or _file(name) is None:
            continue
        found.add(name)
        waiting += _imports(name)
        if (_ROOT / Path(*name.split("."))).is_dir() and name == stage:
            # A stage's package may load its parts lazily: all of it counts.
            waiting += [f"{name}.{path.stem}" for path in (_ROOT / name).glob("[!_]*.py")]
    return sorted(found)


@functools.cache
def code_hash(stage: str) -> str:
    """Return a hash (hex, 16 digits) of the code that the results of `stage` depend on."""
    digest = hashlib.sha256()
    for name in modules_of(stage):
        lines = _file(name).read_text(encoding="utf-8").splitlines()  # type: ignore[union-attr]
        kept = [line.rstrip() for line in lines if line.strip() and line.strip()[0] != "#"]
        digest.update("\n".join([name, *kept]).encode())
    return digest.hexdigest()[:16]


def file_identity(path: str) -> str:
    """Return a hash of a file's size and of its first and last MiB, cheap for any size.

    For inputs from outside (URL lists, data sets): a copy or a fresh checkout has a new time and
    the same content, and must not make anything stale. A parquet footer, which holds the statistics
    of all columns, lies in the last MiB.
    """
    target = Path(path)
    size = target.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with target.open("rb") as handle:
        digest.update(handle.read(1 << 20))
        if size > 1 << 20:
            handle.seek(max(1 << 20, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()[:16]


def _file(name: str) -> Path | None:
    """Return the source file of module `name`, a package's being its __init__.py."""
    path = _ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def _imports(name: str) -> list[str]:
    """Return the modules below mlcd that `name` imports, anywhere in its text."""
    path = _file(name)
    assert path is not None
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [module.removeprefix("mlcd.") for module in found if module.startswith("mlcd.")]

"""The package as modules, and what the names in them refer to.

A target is one of

    ("node", module, key, place)   a definition; `key` and `place` as in :class:`Module`
    ("module", name)               a module of the package, named below it
    ("boundary", name)             anything in a room that is not followed
    ("external", name)             anything of another package
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

from mlcd.utils.fingerprint.modules import Module, Target

#: Rooms that say how and where work runs, never what: what they hold is not followed.
BOUNDARY = (
    "__main__", "cli", "commands", "launch", "slurm", "utils.errors", "utils.logging",
    "utils.fingerprint", "utils.fencing", "utils.ownership", "utils.processes", "training.driver",
)  # fmt: skip


class Graph:
    """The package whose folder is `root`; modules are parsed when they are asked for.

    `boundary`: rooms (prefixes of module names below the package) that are not followed.
    """

    def __init__(self, root: Path, boundary: tuple[str, ...] = BOUNDARY) -> None:
        self.root = root
        self.package = root.name
        self.boundary = boundary
        self._modules: dict[str, Module | None] = {}

    def take(self, other: Graph, module: str) -> None:
        """Take the parsed modules of another graph, except `module`."""
        self._modules.update(other._modules)
        self._modules.pop(module, None)

    # ------------------------------------------------------------------------------- modules

    def module(self, name: str) -> Module | None:
        """Return the module called `name` below the package ("" is the package itself), or None."""
        if name not in self._modules:
            self._modules[name] = None
            path = self.root.joinpath(*filter(None, name.split(".")))
            for file in (path / "__init__.py", path.with_suffix(".py")):
                if file.is_file():
                    self._modules[name] = Module(self, name, file)
                    break
        return self._modules[name]

    def is_boundary(self, name: str) -> bool:
        """True if the module `name` lies in a room that is not followed."""
        return any(name == room or name.startswith(f"{room}.") for room in self.boundary)

    def below(self, name: str) -> tuple[str, ...]:
        """Return the modules directly in package `name`."""
        folder = self.root.joinpath(*filter(None, name.split(".")))
        found = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        found += [path.parent.name for path in folder.glob("*/__init__.py")]
        return tuple(f"{name}.{one}" if name else one for one in sorted(found))

    def _exists(self, name: str) -> bool:
        path = self.root.joinpath(*filter(None, name.split(".")))
        return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()

    def _inside(self, dotted: str) -> str | None:
        """Return a full module name without the package's, or None for another package's."""
        if dotted == self.package:
            return ""
        head = f"{self.package}."
        return dotted.removeprefix(head) if dotted.startswith(head) else None

    def _full(self, module: Module, node: ast.ImportFrom) -> str:
        """Return the full name of the module that a ``from`` import names."""
        if not node.level:
            return node.module or ""
        parts = [self.package, *filter(None, module.name.split("."))]
        parts = parts[: len(parts) - node.level + module.is_package]
        return ".".join([*parts, *filter(None, [node.module])])

    def bindings(self, module: Module, node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
        """Return the names that an import binds, each with its target; a node's is found later."""
        found: dict[str, Target] = {}
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or name] = self._of_module(name)
            return found
        full = self._full(module, node)
        for alias in node.names:
            if alias.name != "*":
                target = self._of_module(full)
                found[alias.asname or alias.name] = (
                    ("external", f"{full}.{alias.name}") if target[0] == "external"
                    else ("lazy", target, alias.name)
                )  # fmt: skip
        return found

    def _of_module(self, full: str) -> Target:
        name = self._inside(full)
        if name is None:
            return ("external", full)
        return ("boundary", name) if self.is_boundary(name) else ("module", name)

    def imported(self, module: Module, node: ast.Import | ast.ImportFrom) -> list[str]:
        """Return the followed modules of the package that an import statement loads."""
        if isinstance(node, ast.Import):
            names = [self._inside(alias.name) for alias in node.names]
        else:
            name = self._inside(self._full(module, node))
            names = [name]
            if name is not None:
                names += [f"{name}.{alias.name}".lstrip(".") for alias in node.names]
        return [
            name for name in names
            if name is not None and not self.is_boundary(name) and self._exists(name)
        ]  # fmt: skip

    # -------------------------------------------------------------------------------- targets

    def resolve(self, module: Module, name: str, seen: frozenset[Any] = frozenset()) -> Any:
        """Return the target of a top-level `name` of `module`, or None."""
        found = module.symbols.get(name)
        if found is None:
            for star in module.stars:
                other = self.module(star)
                if other is not None and (module.name, name) not in seen:
                    target = self.resolve(other, name, seen | {(module.name, name)})
                    if target is not None:
                        return target
            return None
        if found[0] in module.statements and len(found) == 2 and isinstance(found[1], int):
            return ("node", module.name, *found)
        return self.settle(found, seen)

    def settle(self, target: Target, seen: frozenset[Any] = frozenset()) -> Target:
        """Return the target that a name bound by a ``from`` import stands for."""
        if target[0] != "lazy":
            return target
        return self.member(target[1], target[2], seen)

    def member(self, owner: Target, name: str, seen: frozenset[Any] = frozenset()) -> Target:
        """Return the target of attribute `name` of a module."""
        if owner[0] in ("external", "boundary"):
            return (owner[0], f"{owner[1]}.{name}")
        full = f"{owner[1]}.{name}".lstrip(".")
        module = self.module(owner[1])
        if module is not None and (owner[1], name) not in seen:
            target: Target | None = self.resolve(module, name, seen | {(owner[1], name)})
            if target is not None:
                return target
        if self.is_boundary(full):
            return ("boundary", full)
        if self._exists(full):
            return ("module", full)
        if module is not None and "__getattr__" in module.symbols:
            return ("module", owner[1])
        return ("external", f"{self.package}.{full}")

    def named_by(self, text: str, module: Module) -> Any:
        """Return a token for modules, definitions or files of the package that a string names."""
        if text.startswith(f"{self.package}."):
            return self._named(text.removeprefix(f"{self.package}."))
        if "." in text and len(text) < 100 and "\n" not in text and not text.startswith("/"):
            file = module.path.parent / text
            if file.suffix not in ("", ".py", ".pyc") and _is_file(file):
                return f"file {hashlib.sha256(file.read_bytes()).hexdigest()}"
        if text.isidentifier() and (files := _data_files(module.path.parent / text)):
            digest = hashlib.sha256()
            for file in files:
                digest.update(f"{file.name}\n".encode() + file.read_bytes())
            return f"folder {digest.hexdigest()}"
        return None

    def _named(self, name: str) -> Any:
        if name.endswith(".") or not name:
            return ("modules", self.below(name.rstrip(".")))
        if not all(part.isidentifier() for part in name.replace(":", ".").split(".")):
            return None
        target: Target = ("module", "")
        for part in name.replace(":", ".").split("."):
            target = self.member(target, part)
            if target[0] not in ("module", "node"):
                break
        if target[0] == "boundary":
            return "boundary"
        if target[0] == "module":
            return ("modules", (target[1],))
        return ("ref", target, False) if target[0] == "node" else None


@functools.cache
def _data_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that is no package: templates, say."""
    if not folder.is_dir() or (folder / "__init__.py").exists():
        return ()
    kept = (file for file in folder.rglob("*") if file.suffix not in (".py", ".pyc"))
    return tuple(sorted(file for file in kept if file.is_file()))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

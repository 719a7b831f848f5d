"""A module of the package, parsed, as its top-level statements sorted by what they define."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from mlcd.utils.fingerprint.syntax import children, statements

Target = tuple[Any, ...]
#: Key of the statements of a module that are no definitions, such as calls.
EFFECTS = "(effects)"


class Imports(Protocol):
    """What a module asks about its imports; :class:`mlcd.utils.fingerprint.graph.Graph` knows."""

    def bindings(self, module: Module, node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
        """Return the names that an import binds, each with its target."""

    def imported(self, module: Module, node: ast.Import | ast.ImportFrom) -> list[str]:
        """Return the modules of the package that an import loads."""


class Module:
    """A parsed module. `symbols`: top-level name → target or (key, place among its targets)."""

    def __init__(self, graph: Imports, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.is_package = path.name == "__init__.py"
        self.symbols: dict[str, Target] = {}
        self.statements: dict[str, list[ast.stmt]] = {}
        #: Imported anywhere in the module, for telling what a message is.
        self.imports: dict[str, Target] = {}
        #: Modules whose effects an import of this one has.
        self.needs: list[str] = []
        self.stars: list[str] = []
        self._graph = graph
        tree = ast.parse(path.read_bytes())
        self._scan(tree.body)
        for node in statements(tree.body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update(graph.bindings(self, node))

    def _scan(self, body: list[ast.stmt], *, typing: bool = False) -> None:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node, typing=typing)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                self._scan(node.body, typing=True)
                self._scan(node.orelse)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._define([node.name], node)
            elif isinstance(node, ast.Assign) and (names := _plain_names(node.targets)):
                self._define(names, node)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if node.value is not None:
                    self._define([node.target.id], node)
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                self._effect(node)

    def _import(self, node: ast.Import | ast.ImportFrom, *, typing: bool) -> None:
        self.symbols.update(self._graph.bindings(self, node))
        if not typing:
            self.needs += self._graph.imported(self, node)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            self.stars += self._graph.imported(self, node)[:1]

    def _define(self, names: list[str], node: ast.stmt) -> None:
        if names == ["__all__"]:
            return
        if names == ["LOGGER"]:
            self.symbols["LOGGER"] = ("boundary", "LOGGER")
            return
        known = [self.symbols[name] for name in names if name in self.symbols]
        key = next((one[0] for one in known if one[0] in self.statements), ",".join(names))
        self.statements.setdefault(key, []).append(node)
        for place, name in enumerate(names):
            self.symbols.setdefault(name, (key, place))
            if self.symbols[name][0] not in self.statements:
                self.symbols[name] = (key, place)

    def _effect(self, node: ast.stmt) -> None:
        self.statements.setdefault(EFFECTS, []).append(node)
        for inner in _outside_functions(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                self._import(inner, typing=False)
            elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.symbols.setdefault(inner.name, (EFFECTS, len(self.symbols)))
            elif isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
                self.symbols.setdefault(inner.id, (EFFECTS, len(self.symbols)))


def _plain_names(targets: list[ast.expr]) -> list[str]:
    """Return the names of an assignment's targets, [] if any is something else."""
    flat = [
        one for target in targets
        for one in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]  # fmt: skip
    return [one.id for one in flat if isinstance(one, ast.Name)] if all(
        isinstance(one, ast.Name) for one in flat
    ) else []  # fmt: skip


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for inner in children(node):
            yield from _outside_functions(inner)

"""Copies of the package's source, and edits of it, for the tests of fingerprints."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import mlcd
from mlcd.config import SECTIONS
from mlcd.utils.fingerprint.code import Code

SOURCE = Path(mlcd.__file__).parent
STAGES = tuple(SECTIONS)


def package(folder: Path, modules: dict[str, str]) -> Path:
    """Write a package of `modules` (path → source) into `folder`; return its root."""
    root = folder / "mlcd"
    for name, source in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def hashes(root: Path) -> dict[str, str]:
    """Return stage → hash of the code in `root`."""
    code = Code(root)
    return {stage: code.hash(stage) for stage in STAGES}


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def rewrite(root: Path, change: ast.NodeTransformer) -> int:
    """Apply `change` to every module; return how many it changed."""
    count = 0
    for path in files(root):
        tree = ast.parse(path.read_text())
        before = ast.dump(tree)
        tree = change.visit(tree)
        if ast.dump(tree) != before:
            path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
            count += 1
    return count


def replace(root: Path, pattern: str, word: str) -> int:
    """Replace a regular expression in every file; return the number of places."""
    total = 0
    for path in files(root):
        text, count = re.subn(pattern, word, path.read_text())
        if count:
            path.write_text(text)
        total += count
    return total


class _Otherwise(ast.NodeTransformer):
    """Changes what a function gives back: a pair of it and None, in the first `return`."""

    def __init__(self) -> None:
        self.done = False

    def visit_Return(self, node: ast.Return) -> ast.Return:
        if self.done or node.value is None:
            return node
        self.done = True
        return ast.Return(ast.Tuple([node.value, ast.Constant(None)], ast.Load()))


@contextlib.contextmanager
def computing_otherwise(root: Path, module: str, name: str) -> Iterator[bool]:
    """Let a function or class compute something else for a while; yields False if it cannot."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text()
    tree = ast.parse(source)
    change = _Otherwise()
    for node in tree.body:
        if getattr(node, "name", None) == name:
            node.body = [change.visit(inner) for inner in node.body]  # type: ignore[attr-defined]
    if change.done:
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    try:
        yield change.done
    finally:
        path.write_text(source)

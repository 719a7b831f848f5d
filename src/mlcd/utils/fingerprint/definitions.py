"""Definitions of the package, each with its tokens and with what others may call it by."""

from __future__ import annotations

import ast
import dataclasses
import functools
from typing import Any

from mlcd.utils.fingerprint import messages
from mlcd.utils.fingerprint.graph import Graph
from mlcd.utils.fingerprint.modules import EFFECTS, Module, Target
from mlcd.utils.fingerprint.syntax import walk
from mlcd.utils.fingerprint.tokens import Emitter, Token, all_arguments

_ERRORS, _LOGGING = "utils.errors.", "utils.logging."
#: Decorators and bases of classes whose field names can reach files.
_RECORDS = {"dataclasses.dataclass", "typing.NamedTuple", "typing.TypedDict"}
#: Bases that call no method by its name.
_PLAIN_BASES = {"object", "typing.Protocol", "typing.Generic", "abc.ABC"}
#: A base that knows fields by their names, and methods by its decorators alone.
_MODEL = "pydantic.BaseModel"
#: Functions that reach members by names made at run time.
_DYNAMIC = {"getattr", "setattr", "hasattr", "delattr", "vars", "dir"}


@dataclasses.dataclass
class Definition:
    """A top-level definition: `kind` is function, class, value, or effects (of a module).

    `reached`: what counts without a place in `tokens`. `members` of a class: name of a method or
    attribute → its place; those in `literal` keep their names, because something outside may know
    them. `parameters`: method, or "" for a function → names of its parameters. `outer`: the class
    has a base from outside, which may call any method. `strings`: the strings that stand in it.
    """

    kind: str
    tokens: list[Token]
    reached: list[Target]
    members: dict[str, int] = dataclasses.field(default_factory=dict)
    literal: set[str] = dataclasses.field(default_factory=set)
    parameters: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    outer: bool = False
    strings: set[str] = dataclasses.field(default_factory=set)


class Definitions:
    """All definitions of the package of `graph`, made when they are asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[tuple[str, str], Definition] = {}

    def take(self, other: Definitions, module: str) -> None:
        """Take the definitions of another package's state, except those of `module`."""
        self._found |= {key: one for key, one in other._found.items() if key[0] != module}

    def get(self, name: str, key: str) -> Definition:
        """Return a definition of module `name` by its key in :attr:`Module.statements`."""
        found = self._found.get((name, key))
        if found is None:
            module = self.graph.module(name)
            assert module is not None
            found = self._found[name, key] = self._build(module, key)
        return found

    def _build(self, module: Module, key: str) -> Definition:
        emitter = Emitter(self.graph, module, self.field_kind)
        kinds = messages.Kinds(functools.partial(self._kind_of, module))
        kind, last = "effects" if key == EFFECTS else "value", None
        for node in module.statements[key]:
            left = messages.strip(node, kinds)
            if key == EFFECTS:
                for statement in left:
                    emitter.emit(statement)
            elif isinstance(node, ast.Assign):
                shape = [len(one.elts) if isinstance(one, ast.Tuple) else 0 for one in node.targets]
                emitter.tokens.append(f"(Assign {shape}")
                emitter.emit(node.value)
            elif isinstance(node, ast.AnnAssign):
                emitter.tokens.append("(Assign [0]")
                emitter.annotation(node.annotation)
                emitter.emit(node.value)
            else:
                emitter.emit(node)
                kind, last = "class" if isinstance(node, ast.ClassDef) else "function", node
        found = Definition(kind, emitter.tokens, emitter.reached)
        found.strings = {
            token[5:-1] for token in emitter.tokens
            if isinstance(token, str) and token.startswith("str:")
        }  # fmt: skip
        if isinstance(last, ast.ClassDef):
            self._describe(found, module, last)
        elif isinstance(last, messages.Function):
            found.parameters[""] = [one.arg for one in all_arguments(last.args)]
        return found

    def _describe(self, found: Definition, module: Module, node: ast.ClassDef) -> None:
        """Fill in what a class has: its members in their order, and which keep their names."""
        kind = self.field_kind(module, node)
        for statement in node.body:
            for name in _bound(statement):
                found.members.setdefault(name, len(found.members))
                if isinstance(statement, ast.AnnAssign) and kind != "plain":
                    found.literal.add(name)
        for statement in node.body:
            if not isinstance(statement, messages.Function):
                continue
            found.parameters[statement.name] = [one.arg for one in all_arguments(statement.args)]
            own = next((one.arg for one in all_arguments(statement.args)), None)
            for inner in walk(statement):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == own
                ):
                    found.members.setdefault(inner.attr, len(found.members))
        found.outer = bool(self._lineage(module, node) - _PLAIN_BASES - _RECORDS - {_MODEL})
        if kind in ("config", "model"):
            found.literal.update(name for name in found.members if name.startswith("model_"))
        if found.outer or any(
            (isinstance(inner, ast.Name) and inner.id in _DYNAMIC)
            or (isinstance(inner, ast.Attribute) and inner.attr == "__dict__")
            for inner in walk(node)
        ):  # fmt: skip
            found.literal.update(found.members)
        found.literal.update(name for name in found.members if name.startswith("__"))

    def _kind_of(self, module: Module, node: ast.expr) -> str:
        """Return what a callee is; see :class:`mlcd.utils.fingerprint.messages.Kinds`."""
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return "other"
        target = module.imports.get(node.id)
        if target is None:
            known = module.symbols.get(node.id)
            if known is not None and known[0] == "boundary":
                return "logging"
            return "own" if known is not None and not path else "other"
        target = self.graph.settle(target)
        for name in reversed(path):
            if target[0] == "node":
                return "other"
            target = self.graph.member(target, name)
        if target[0] == "boundary":
            if target[1].startswith(_ERRORS):
                return "error"
            return "logging" if target[1].startswith(_LOGGING) else "other"
        return "other" if target[0] == "external" else "own"

    def field_kind(self, module: Module, node: ast.ClassDef) -> str:
        """Return how a class uses annotated names: plain, record, model, or config."""
        names = self._lineage(module, node)
        if _MODEL in names:
            return "config" if module.name.split(".")[0] == "config" else "model"
        for decorator in node.decorator_list:
            callee = decorator.func if isinstance(decorator, ast.Call) else decorator
            names |= self._outside(module, callee)
        return "record" if names & _RECORDS else "plain"

    def _lineage(self, module: Module, node: ast.ClassDef) -> set[str]:
        """Return the names of the bases from outside the package, over all bases inside it."""
        return set().union(*(self._outside(module, base) for base in node.bases))

    def _outside(self, module: Module, node: ast.expr) -> set[str]:
        if isinstance(node, ast.Subscript):
            node = node.value
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return {"?"}
        target: Any = self.graph.resolve(module, node.id)
        if target is None:
            return {node.id}
        for name in reversed(path):
            if target[0] == "node":
                return {"?"}
            target = self.graph.member(target, name)
        if target[0] != "node":
            return {str(target[1])}
        other = self.graph.module(target[1])
        assert other is not None
        (found, *_) = other.statements[target[2]]
        return self._lineage(other, found) if isinstance(found, ast.ClassDef) else {"?"}


def _bound(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of a class body defines."""
    if isinstance(statement, messages.Function | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign):
        return [statement.target.id] if isinstance(statement.target, ast.Name) else []
    return [
        node.id
        for node in walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]

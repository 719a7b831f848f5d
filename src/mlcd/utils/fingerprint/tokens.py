"""A definition as tokens in which no name of the package's own stands, only what it refers to.

A token is a string, taken as it is, or one of

    ("ref", target, called)            another definition of the package
    ("modules", names)                 whole modules, such as those a string names
    ("attr", name, called)             an attribute or method, perhaps of a class of the package
    ("parameter", owner, name)         a parameter's name in its function's signature
    ("keyword", callee, name)          a keyword of a call; callee: a target, or a method's name

Local variables are numbered by their first occurrence. Names from outside the package stand as they
are, with the module that they come from, whatever the import calls them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlcd.utils.fingerprint.syntax import children, walk

if TYPE_CHECKING:
    from mlcd.utils.fingerprint.graph import Graph
    from mlcd.utils.fingerprint.modules import Module

Token = str | tuple[Any, ...]
Function = ast.FunctionDef | ast.AsyncFunctionDef
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SKIPPED = {"ctx", "kind", "type_comment", "returns", "annotation"}


class Emitter:
    """Turns statements of one definition of `module` into `tokens`.

    `field_kind`: how a class uses annotated names (plain, record, model, config). `reached`:
    targets that count without a place in the tokens, such as classes in annotations and modules
    that are imported for their effects.
    """

    def __init__(
        self, graph: Graph, module: Module, field_kind: Callable[[Module, ast.ClassDef], str]
    ) -> None:
        self.graph = graph
        self._field_kind = field_kind
        self.module = module
        self.tokens: list[Token] = []
        self.reached: list[tuple[Any, ...]] = []
        self._scopes: list[dict[str, Any]] = []
        self._count = 0

    # ------------------------------------------------------------------------------- generic

    def emit(self, node: Any) -> None:
        """Append the tokens of a node, a list of nodes, or a plain value."""
        if isinstance(node, ast.AST):
            kind = type(node).__name__
            special = _SPECIAL.get(kind)
            special(self, node) if special else self._emit_fields(node, kind)
        elif isinstance(node, list):
            self.tokens.append("[")
            for item in node:
                self.emit(item)
            self.tokens.append("]")
        else:
            self.tokens.append(f"{type(node).__name__}:{node!r}")

    def _emit_fields(self, node: ast.AST, kind: str) -> None:
        # Empty fields are left out: versions of Python differ in which there are.
        self.tokens.append(f"({kind}")
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == [] or field in _SKIPPED:
                continue
            self.tokens.append(field)
            self.emit(value)
        self.tokens.append(")")

    def _emit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, str):
            named = self.graph.named_by(value, self.module)
            if named is not None:
                self.tokens.append(named)
                return
        self.tokens.append(f"{type(value).__name__}:{value!r}")

    # --------------------------------------------------------------------------------- names

    def _lookup(self, name: str) -> Any:
        """Return a local's number, a target, or None for what is built in."""
        for depth, scope in enumerate(reversed(self._scopes)):
            if name not in scope or (scope.get("class ") and depth):
                continue
            found = scope[name]
            if found is None:
                found = scope[name] = self._count
                self._count += 1
            return self.graph.settle(found) if isinstance(found, tuple) else found
        return self.graph.resolve(self.module, name)

    def _name(self, name: str, called: bool = False) -> None:
        found = self._lookup(name)
        if found is None:
            if name in ("__name__", "__package__", "__path__") and self.module.is_package:
                self.tokens.append(("modules", self.graph.below(self.module.name)))
            else:
                self.tokens.append(f"name {name}")
        elif isinstance(found, int):
            self.tokens.append(f"local {found}")
        elif found == "member":
            self.tokens.append(("attr", name, called))
        else:
            self._target(found, called)

    def _target(self, target: tuple[Any, ...], called: bool) -> None:
        kind = target[0]
        if kind == "boundary":
            self.tokens.append("boundary")
        elif kind == "external":
            self.tokens.append(f"external {target[1]}")
        elif kind == "module":
            self.tokens.append(("modules", (target[1],)))
        else:
            self.tokens.append(("ref", target, called))

    def _emit_Name(self, node: ast.Name, called: bool = False) -> None:
        self._name(node.id, called)

    def _chain(self, node: ast.expr) -> tuple[Any, ...] | None:
        """Return the target of `a.b.c` where `a` is a module, else None."""
        if isinstance(node, ast.Name):
            found = self._lookup(node.id) if self._is_known(node.id) else None
            return found if isinstance(found, tuple) else None
        if isinstance(node, ast.Attribute):
            owner = self._chain(node.value)
            if owner is not None and owner[0] in ("module", "external", "boundary"):
                return self.graph.member(owner, node.attr)
        return None

    def _is_known(self, name: str) -> bool:
        """True if looking `name` up gives no number to a local variable."""
        for scope in reversed(self._scopes):
            if name in scope and not scope.get("class "):
                return isinstance(scope[name], tuple)
        return True

    def _emit_Attribute(self, node: ast.Attribute, called: bool = False) -> None:
        target = self._chain(node)
        if target is not None:
            self._target(target, called)
            return
        self.tokens.append("(Attribute")
        self.emit(node.value)
        self.tokens.append(("attr", node.attr, called))

    def _emit_Call(self, node: ast.Call) -> None:
        spread = any(word.arg is None for word in node.keywords)
        self.tokens.append("(Call")
        function = node.func
        callee: Any = None
        if isinstance(function, ast.Name | ast.Attribute):
            target = self._chain(function)
            if target is not None and target[0] == "node":
                callee = target
            elif target is None and isinstance(function, ast.Attribute):
                callee = function.attr
            emit = self._emit_Name if isinstance(function, ast.Name) else self._emit_Attribute
            emit(function, not spread)  # type: ignore[arg-type]
        else:
            self.emit(function)
        self.emit(node.args)
        for word in node.keywords:
            if callee is None or word.arg is None:
                self.tokens.append(f"keyword {word.arg}")
            else:
                self.tokens.append(("keyword", callee, word.arg))
            self.emit(word.value)
        self.tokens.append(")")

    def _emit_MatchAs(self, node: Any) -> None:
        self.tokens.append(f"({type(node).__name__}")
        if getattr(node, "pattern", None):
            self.emit(node.pattern)
        if node.name:
            self._name(node.name)
        self.tokens.append(")")

    _emit_MatchStar = _emit_MatchAs

    def _emit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.tokens.append("(ExceptHandler")
        if node.type:
            self.emit(node.type)
        self.emit(node.body)

    def _emit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.reached += [("effects", name) for name in self.graph.imported(self.module, node)]

    _emit_ImportFrom = _emit_Import

    def _emit_Global(self, node: ast.AST) -> None:
        pass

    _emit_Nonlocal = _emit_Global

    # --------------------------------------------------------------------------- annotations

    def annotation(self, node: ast.expr | None) -> None:
        """Note the classes of the package that an annotation names; it is no token itself."""
        for inner in walk(node) if node is not None else ():
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                try:
                    self.annotation(ast.parse(inner.value, mode="eval").body)
                except (SyntaxError, ValueError):
                    continue
            elif isinstance(inner, ast.Name | ast.Attribute):
                target = self._chain(inner)
                if target is not None and target[0] == "node":
                    self.reached.append(("class", target))

    def _emit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.annotation(node.annotation)
        if node.value is not None:
            self.tokens.append("(Assign")
            self.emit(node.target)
            self.emit(node.value)

    def _emit_Assign(self, node: ast.Assign) -> None:
        self.tokens.append("(Assign")
        for target in node.targets:
            self.emit(target)
        self.emit(node.value)

    # --------------------------------------------------------------------------------- scopes

    def _emit_FunctionDef(self, node: Function) -> None:
        if self._scopes and self._scopes[-1].get("class "):
            self.tokens.append(("attr", node.name, True))
            owner: Any = ("method", node.name)
        elif self._scopes:
            self._name(node.name)
            owner = None
        else:
            owner = ("function",)
        self.tokens.append(f"({type(node).__name__}")
        self.emit(node.decorator_list)
        self._signature(node.args, owner)
        self.annotation(node.returns)
        self._scopes.append(self._function_scope(node))
        self._parameters(node.args, owner)
        self.emit(node.body)
        self._scopes.pop()
        self.tokens.append(")")

    _emit_AsyncFunctionDef = _emit_FunctionDef

    def _emit_Lambda(self, node: ast.Lambda) -> None:
        self.tokens.append("(Lambda")
        self._signature(node.args, None)
        self._scopes.append(self._function_scope(node))
        # One that takes several values might be called by keyword.
        self._parameters(node.args, ("lambda",) if len(all_arguments(node.args)) < 2 else None)
        self.emit(node.body)
        self._scopes.pop()
        self.tokens.append(")")

    def _signature(self, arguments: ast.arguments, owner: Any) -> None:
        """Emit defaults, which the surrounding scope evaluates, and note annotations."""
        self.emit(arguments.defaults)
        self.tokens.append("keyword only")
        for default in arguments.kw_defaults:
            self.tokens.append("required") if default is None else self.emit(default)
        for argument in all_arguments(arguments):
            self.annotation(argument.annotation)

    def _parameters(self, arguments: ast.arguments, owner: Any) -> None:
        self.tokens.append(f"{len(arguments.posonlyargs)} {len(arguments.args)}")
        for argument in all_arguments(arguments):
            self._name(argument.arg)
            if owner is None:
                self.tokens.append(f"parameter {argument.arg}")
            elif owner[0] != "lambda":
                self.tokens.append(("parameter", owner, argument.arg))
        for name in ("vararg", "kwarg"):
            self.tokens.append(f"{name} {getattr(arguments, name) is not None}")

    def _function_scope(self, node: Any) -> dict[str, Any]:
        scope: dict[str, Any] = dict.fromkeys(arg.arg for arg in all_arguments(node.args))
        free: set[str] = set()
        body = node.body if isinstance(node.body, list) else [node.body]
        self._bind(body, scope, free)
        return {name: found for name, found in scope.items() if name not in free}

    def _bind(self, nodes: Any, scope: dict[str, Any], free: set[str]) -> None:
        """Add the names that `nodes` bind, not those of functions and comprehensions in them."""
        for node in nodes:
            if isinstance(node, ast.Name):
                if not isinstance(node.ctx, ast.Load):
                    scope.setdefault(node.id)
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                scope.update(self.graph.bindings(self.module, node))
                continue
            if isinstance(node, ast.Global | ast.Nonlocal):
                free.update(node.names)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                scope.setdefault(node.name)
                outer = [*node.decorator_list, *getattr(node, "bases", ())]
                arguments = getattr(node, "args", None)
                if arguments is not None:
                    outer += [*arguments.defaults, *filter(None, arguments.kw_defaults)]
                self._bind(outer, scope, free)
                continue
            elif isinstance(node, ast.Lambda):
                continue
            elif isinstance(node, _COMPREHENSIONS):
                for inner in walk(node):
                    if isinstance(inner, ast.NamedExpr):
                        scope.setdefault(inner.target.id)
                continue
            elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                scope.setdefault(node.name)
            self._bind(children(node), scope, free)

    def _comprehension(self, node: Any) -> None:
        self.tokens.append(f"({type(node).__name__}")
        self.emit(node.generators[0].iter)
        scope: dict[str, Any] = {}
        for part in node.generators:
            self._bind([part.target], scope, set())
        self._scopes.append(scope)
        for place, part in enumerate(node.generators):
            if place:
                self.emit(part.iter)
            self.emit(part.target)
            self.emit(part.ifs)
            self.tokens.append(f"async {part.is_async}")
        for field in ("key", "value", "elt"):
            if hasattr(node, field):
                self.emit(getattr(node, field))
        self._scopes.pop()
        self.tokens.append(")")

    _emit_ListComp = _emit_SetComp = _emit_DictComp = _emit_GeneratorExp = _comprehension

    def _emit_ClassDef(self, node: ast.ClassDef) -> None:
        if self._scopes:
            self._name(node.name)
        self.tokens.append("(ClassDef")
        self.emit(node.decorator_list)
        self.emit(node.bases)
        self.emit(node.keywords)
        scope: dict[str, Any] = {}
        self._bind(node.body, scope, set())
        scope = {name: "member" if found is None else found for name, found in scope.items()}
        fields = self._field_kind(self.module, node)
        self._scopes.append({**scope, "class ": True})
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and fields != "plain":
                self._field(statement, fields)
            else:
                self.emit(statement)
        self._scopes.pop()
        self.tokens.append(")")

    def _field(self, node: ast.AnnAssign, kind: str) -> None:
        """A field of a record (dataclass and the like), or of a model that is checked by its type.

        A field's name can reach files. The fields of the config do not count at all: their values
        reach a rule by themselves.
        """
        self.annotation(node.annotation)
        if kind == "config":
            return
        self.tokens.append(f"field {ast.unparse(node.target)}")
        text = ast.unparse(node.annotation)
        if kind == "model" or any(word in text for word in ("ClassVar", "InitVar", "KW_ONLY")):
            self.tokens.append(text)
        if node.value is not None:
            self.emit(node.value)


#: Kind of node → the method that emits it; all others are emitted field by field.
_SPECIAL: dict[str, Callable[[Emitter, Any], None]] = {
    name.removeprefix("_emit_"): method
    for name, method in vars(Emitter).items()
    if name.startswith("_emit_") and name != "_emit_fields"
}


def all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    """Return all parameters in the order of the signature."""
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return found + [one for one in (arguments.vararg, arguments.kwarg) if one is not None]

"""What of a definition only speaks to people: docstrings, messages, help texts, annotations' place.

:func:`strip` takes it out of a syntax tree, and with it the local variables and the tests that only
served it, so that a reworded message changes no fingerprint. Whatever might do more than speak
stays in.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator

from mlcd.utils.fingerprint.syntax import children, walk

Function = ast.FunctionDef | ast.AsyncFunctionDef
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
#: Keywords that only hold text for people, whatever is called …
_TEXTS = {"help", "metavar", "epilog"}
#: … and where these are called.
_DESCRIBED = {"Field", "ArgumentParser", "add_parser", "add_argument_group", "add_subparsers"}
#: Exceptions whose arguments are values, not messages.
_VALUED = {"SystemExit", "StopIteration", "StopAsyncIteration"}
#: Functions and methods without effect: a variable made by them alone may go with its message.
_PURE_FUNCTIONS = {
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "format", "frozenset", "getattr",
    "hasattr", "int", "isinstance", "len", "list", "max", "min", "range", "repr", "reversed",
    "round", "set", "sorted", "str", "sum", "tuple", "type", "zip",
}  # fmt: skip
_PURE_METHODS = {
    "capitalize", "count", "endswith", "format", "get", "get_close_matches", "index", "item",
    "items", "join", "keys", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "title", "tolist", "upper", "values", "with_suffix", "with_name",
}  # fmt: skip
_PURE = (
    ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.BinOp, ast.BoolOp,
    ast.UnaryOp, ast.Compare, ast.IfExp, ast.JoinedStr, ast.FormattedValue, ast.Tuple, ast.List,
    ast.Dict, ast.Set, ast.Starred, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    ast.comprehension, ast.keyword, ast.expr_context, ast.operator, ast.boolop, ast.unaryop,
    ast.cmpop,
)  # fmt: skip


class Kinds:
    """What a callee is to its caller, as far as messages go.

    `of(node)` returns ``error`` (an exception whose arguments are a message), ``logging`` (anything
    of the room of logs), ``own`` (another definition of the package) or ``other``.
    """

    def __init__(self, of: Callable[[ast.expr], str]) -> None:
        self.of = of


def strip(node: ast.stmt, kinds: Kinds) -> list[ast.stmt]:
    """Take out of `node`, a definition or statement of a module, what only speaks to people.

    It is changed in place. Returns [`node`], or [] if nothing of it is left.
    """
    functions = _shorten_calls(node, kinds)
    holder = ast.Module(body=[node], type_ignores=[])
    _filter(holder, kinds)
    for function in functions:
        _drop_unread(function)
    return holder.body


def _shorten_calls(node: ast.stmt, kinds: Kinds) -> list[Function]:
    """Empty calls of messages in place; return the outermost functions in which there are any."""
    found: list[Function] = []
    waiting: list[tuple[ast.AST, Function | None]] = [(node, None)]
    while waiting:
        inner, function = waiting.pop()
        if function is None and isinstance(inner, Function):
            function = inner
        spoken = False
        if isinstance(inner, ast.Call):
            spoken = _shorten(inner, kinds)
        elif isinstance(inner, ast.Raise):
            _shorten_raise(inner, kinds)
            spoken = True
        elif isinstance(inner, ast.Assert):
            spoken, inner.msg = inner.msg is not None, None
        if spoken and function is not None and function not in found:
            found.append(function)
        waiting += [(child, function) for child in children(inner)]
    return found


def _shorten(call: ast.Call, kinds: Kinds) -> bool:
    """Take texts out of a call; True if it speaks, so that variables may be left unread."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    speaks = name in _LEVELS or name in ("print", "warn")
    if not (call.args or call.keywords):
        return speaks
    if name[:1].isupper() and kinds.of(call.func) == "error":
        call.args, call.keywords = [], []
        return True
    if call.keywords:
        texts = _TEXTS | ({"description", "title"} if name in _DESCRIBED else set())
        if any(word.arg in ("label", "unit") for word in call.keywords):
            texts = {"label", "unit"} if kinds.of(call.func) == "logging" else set()
        elif not any(word.arg in texts for word in call.keywords):
            return speaks
        if kinds.of(call.func) != "own":
            call.keywords = [word for word in call.keywords if word.arg not in texts]
    return speaks


def _shorten_raise(node: ast.Raise, kinds: Kinds) -> None:
    """Keep that an exception of this class is raised; of the package's own, what it carries too."""
    node.cause = None
    call = node.exc
    if not isinstance(call, ast.Call) or kinds.of(call.func) == "own":
        return
    name = getattr(call.func, "id", "")
    if name in _VALUED or (isinstance(call.func, ast.Name) and not _is_class(call.func, kinds)):
        return
    call.args, call.keywords = [], []


def _is_class(name: ast.Name, kinds: Kinds) -> bool:
    known = getattr(builtins, name.id, None)
    return isinstance(known, type) or kinds.of(name) == "error" or name.id[:1].isupper()


def _filter(node: ast.AST, kinds: Kinds) -> None:
    """Take statements that only speak out of every body in `node`, the innermost first."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list):
            continue
        for statement in statements:
            _filter(statement, kinds)
        if field not in ("handlers", "cases"):
            setattr(node, field, [item for item in statements if not _speaks(item, kinds)])


def _speaks(statement: ast.stmt, kinds: Kinds) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.If):
        return not statement.body and not statement.orelse and is_pure(statement.test)
    if not isinstance(statement, ast.Expr):
        return False
    call = statement.value
    if isinstance(call, ast.Constant):
        return True
    if not isinstance(call, ast.Call) or any(
        isinstance(inner, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)
        for inner in walk(call)
    ):
        return False
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "print" and _to_terminal(call)
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    if function.attr in _LEVELS:
        return kinds.of(function.value) == "logging" or owner.split(".")[-1] == "LOGGER"
    return function.attr == "warn" and owner == "warnings"


def _to_terminal(call: ast.Call) -> bool:
    """True unless `print` writes to a file, or JSON that another program reads."""
    files = [word.value for word in call.keywords if word.arg == "file"]
    if any(ast.unparse(file) not in ("sys.stderr", "sys.stdout") for file in files):
        return False
    return not any("json" in ast.unparse(argument) for argument in call.args)


def _drop_unread(function: Function) -> None:
    """Take out local variables of pure values that nothing reads, now that messages are gone."""
    while True:
        loads: set[str] = set()
        stores: set[str] = set()
        for node in walk(function):
            if isinstance(node, ast.Name):
                (loads if isinstance(node.ctx, ast.Load) else stores).add(node.id)
            elif isinstance(node, ast.Global | ast.Nonlocal):
                loads.update(node.names)
        unread = stores - loads
        if not unread or "locals" in loads or not _drop(function, unread):
            return


def _drop(node: ast.AST, unread: set[str]) -> bool:
    """Drop assignments to names in `unread`, and tests left without a body; True if any was."""
    dropped = False
    for holder in _holders(node):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(holder, field, None)
            if isinstance(statements, list):
                left = [item for item in statements if not _is_unread(item, unread)]
                if len(left) < len(statements):
                    setattr(holder, field, left)
                    dropped = True
    return dropped


def _holders(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over all nodes with statements inside, except classes, whose names are attributes."""
    for inner in children(node):
        if isinstance(inner, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _holders(inner)
    if not isinstance(node, ast.ClassDef):
        yield node


def _is_unread(statement: ast.stmt, unread: set[str]) -> bool:
    if isinstance(statement, ast.If):
        return not statement.body and not statement.orelse and is_pure(statement.test)
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    else:
        return False
    named = all(isinstance(target, ast.Name) and target.id in unread for target in targets)
    return named and is_pure(statement.value)  # type: ignore[arg-type]


def is_pure(node: ast.AST) -> bool:
    """True if evaluating the expression `node` is known to change nothing."""
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name):
            if function.id not in _PURE_FUNCTIONS:
                return False
        elif not isinstance(function, ast.Attribute) or function.attr not in _PURE_METHODS:
            return False
    elif not isinstance(node, _PURE):
        return False
    return all(map(is_pure, children(node)))

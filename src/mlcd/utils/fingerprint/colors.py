"""All that a stage reaches, and a hash of it that depends on no name and no place.

Each definition gets a color: a hash of its tokens in which every reference stands as the color of
what it refers to, as in the Weisfeiler-Lehman test of graph isomorphism. Definitions that refer to
one another in a circle are colored round by round until no round tells more of them apart.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mlcd.utils.fingerprint.definitions import Definition, Definitions
from mlcd.utils.fingerprint.modules import EFFECTS

Node = tuple[Any, ...]
#: Attributes of what Python itself brings: never taken for the package's own.
_BUILT_IN = frozenset(
    name for kind in (list, dict, set, str, bytes, int, float, tuple, BaseException, type)
    for name in dir(kind)
)  # fmt: skip
_INSIDE = "inside"


def digest(parts: Iterable[str]) -> str:
    """Return a hash (hex, 32 digits) of strings in their order."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


class Reach:
    """What the definitions `roots`, pairs of module and key, depend on, themselves included."""

    def __init__(self, definitions: Definitions, roots: Iterable[tuple[str, str]]) -> None:
        self._definitions = definitions
        self._graph = definitions.graph
        self.found: dict[tuple[str, str], Definition] = {}
        #: Modules that are named as a whole.
        self._whole: dict[str, list[tuple[str, str]]] = {}
        self._loaded: set[str] = set()
        self._waiting: list[tuple[str, str]] = list(roots)
        #: Classes reached through aliases in annotations; the alias itself does not count.
        self._aliases: set[tuple[str, str]] = set()
        while self._waiting:
            self._visit(self._waiting.pop())
        self._look_at_names()

    # ---------------------------------------------------------------------------------- reach

    def _visit(self, key: tuple[str, str]) -> None:
        if key in self.found:
            return
        self.found[key] = definition = self._definitions.get(*key)
        self._load(key[0])
        for token in definition.tokens:
            if isinstance(token, tuple):
                if token[0] == "ref":
                    self._waiting.append(token[1][1:3])
                elif token[0] == "modules":
                    for name in token[1]:
                        self._take_whole(name)
        for kind, what in definition.reached:
            if kind == "effects":
                self._load(what)
            else:
                self._annotated(what[1:3])

    def _annotated(self, key: tuple[str, str]) -> None:
        """Follow a class that an annotation names, or the classes of an alias that it names."""
        definition = self._definitions.get(*key)
        if definition.kind == "class":
            self._waiting.append(key)
        elif definition.kind == "value" and key not in self._aliases:
            self._aliases.add(key)
            for token in definition.tokens:
                if isinstance(token, tuple) and token[0] == "ref":
                    self._annotated(token[1][1:3])

    def _load(self, name: str) -> None:
        """Take what importing module `name` does: its own effects, and those of its imports."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self._loaded or self._graph.is_boundary(name):
                continue
            self._loaded.add(name)
            module = self._graph.module(name)
            if module is None:
                continue
            if EFFECTS in module.statements:
                self._waiting.append((name, EFFECTS))
            waiting += module.needs
            if name:
                waiting.append(name.rpartition(".")[0])

    def _take_whole(self, name: str) -> None:
        if name in self._whole or self._graph.is_boundary(name):
            return
        self._whole[name] = []
        module = self._graph.module(name)
        if module is None:
            return
        self._load(name)
        for symbol in sorted(module.symbols):
            target = self._graph.resolve(module, symbol)
            if target is not None and target[0] == "node":
                self._whole[name].append((symbol, target[1:3]))
                self._waiting.append(target[1:3])

    # ---------------------------------------------------------------------------------- names

    def _look_at_names(self) -> None:
        """Decide which names of members and parameters may change without changing anything."""
        classes = {key: one for key, one in self.found.items() if one.kind == "class"}
        literal = set(_BUILT_IN).union(*(one.literal for one in classes.values()))
        strings = set().union(*(one.strings for one in self.found.values()))
        used: set[str] = set()
        self._valued: set[Any] = set()
        for definition in self.found.values():
            own = set(definition.members)
            for token in definition.tokens:
                if not isinstance(token, tuple):
                    continue
                if token[0] == "attr":
                    if not token[2]:
                        self._valued.add(token[1])
                    if token[1] not in own:
                        used.add(token[1])
                elif token[0] == "ref" and not token[2]:
                    self._valued.add(token[1][1:3])
        self._holders: dict[str, list[tuple[tuple[str, str], int]]] = {}
        #: Method → the orders of its parameters in all classes that have it.
        self._orders: dict[str, set[tuple[str, ...]]] = {}
        for key, definition in classes.items():
            own_uses = Counter(
                token[1] for token in definition.tokens
                if isinstance(token, tuple) and token[0] == "attr"
            )  # fmt: skip
            for method, names in definition.parameters.items():
                self._orders.setdefault(method, set()).add(tuple(names))
                if definition.outer:
                    self._valued.add(method)
            for name, place in definition.members.items():
                # What nothing here asks for may be asked for by something outside.
                known = name in used or own_uses[name] > 1 or name.startswith("_")
                if name not in literal and name not in strings and known:
                    self._holders.setdefault(name, []).append((key, place))

    def _parameter(self, key: tuple[str, str], definition: Definition, token: Node) -> str:
        """Return a parameter's name where a caller may know it, else nothing."""
        owner, name = token[1], token[2]
        if owner[0] == "method":
            method = owner[1]
            known = definition.outer or (method in self._valued and not method.startswith("__"))
            if method == "__init__":
                known = key in self._valued
            return f"parameter {name}" if known or method not in definition.parameters else ""
        return f"parameter {name}" if key in self._valued else ""

    def _keyword(self, token: Node) -> str:
        """Return the place of a keyword's parameter if the function is known, else its name."""
        callee, name = token[1], token[2]
        if isinstance(callee, str):
            orders = self._orders.get(callee, set()) if callee in self._holders else set()
            if callee in self._valued or len(orders) != 1:
                return f"keyword {name}"
            (order,) = orders
        else:
            key = callee[1:3]
            definition = self.found[key]
            names = definition.parameters.get("__init__" if definition.kind == "class" else "")
            if names is None or key in self._valued or definition.outer:
                return f"keyword {name}"
            order = tuple(names)
        return f"keyword {order.index(name)}" if name in order else f"keyword {name}"

    # --------------------------------------------------------------------------------- colors

    def _edges(self) -> dict[Node, tuple[list[str | Node], bool]]:
        """Return each node's parts, strings and other nodes; True if their order does not count."""
        edges: dict[Node, tuple[list[str | Node], bool]] = {}
        for key, definition in self.found.items():
            parts: list[str | Node] = [definition.kind]
            for token in definition.tokens:
                if isinstance(token, str):
                    parts.append(token)
                elif token[0] == "ref":
                    parts.append(token[1][1:3])
                    if token[1][3]:
                        parts.append(f"place {token[1][3]}")
                elif token[0] == "attr":
                    parts.append(
                        ("name", token[1], "") if token[1] in self._holders else f"attr {token[1]}"
                    )
                elif token[0] == "parameter":
                    parts.append(self._parameter(key, definition, token))
                elif token[0] == "keyword":
                    parts.append(self._keyword(token))
                else:
                    for name in token[1]:
                        stem = name.rpartition(".")[2] if len(token[1]) > 1 else ""
                        parts += [f"module {stem}", ("module", name, "")]
            edges[key] = parts, False
        for name, holders in self._holders.items():
            # With the place: methods of one class are told apart.
            places: list[str | Node] = []
            for key, place in holders:
                edges["place", key, place] = [f"member {place}", key], False
                places.append(("place", key, place))
            edges["name", name, ""] = places, True
        for name, symbols in self._whole.items():
            members: list[str | Node] = []
            for symbol, definition_key in symbols:
                # Who loads a module by a string asks for its public names.
                word = "symbol" if symbol.startswith("_") else f"symbol {symbol}"
                edges["symbol", name, symbol] = [word, definition_key], False
                members.append(("symbol", name, symbol))
            edges["module", name, ""] = members, True
        return edges

    @functools.cached_property
    def hash(self) -> str:
        """A hash (hex, 16 digits) of all that is reached."""
        edges = self._edges()
        for parts, _ in list(edges.values()):
            for part in parts:
                if isinstance(part, tuple) and part not in edges:
                    edges[part] = ["boundary"], False
        colors: dict[Node, str] = {}
        for circle in circles({
            node: [part for part in parts if isinstance(part, tuple)]
            for node, (parts, _) in edges.items()
        }):  # fmt: skip
            _color(circle, edges, colors)
        return digest(sorted(colors[key] for key in self.found))[:16]

    def shapes(self) -> dict[str, dict[str, str]]:
        """Return module → definition → two hashes of it alone, the second with the names in it.

        For people: to name what differs. Unlike :meth:`hash` it follows no reference.
        """
        found: dict[str, dict[str, str]] = {}
        for (module, key), definition in sorted(self.found.items()):
            plain = [token if isinstance(token, str) else token[0] for token in definition.tokens]
            named = [str(token) for token in definition.tokens]
            found.setdefault(module, {})[key] = f"{digest(plain)[:8]} {digest(named)[:8]}"
        return found


def _color(
    circle: list[Node], edges: dict[Node, tuple[list[str | Node], bool]], colors: dict[Node, str]
) -> None:
    """Color the nodes of one circle of references; all that they refer to outside it has colors."""
    inside = set(circle)
    known = dict.fromkeys(circle, _INSIDE)
    kinds = 1
    while True:
        fresh = {}
        for node in circle:
            parts, unordered = edges[node]
            words = [
                part if isinstance(part, str)
                else f"={known[part] if part in inside else colors[part]}"
                for part in parts
            ]  # fmt: skip
            fresh[node] = digest(sorted(words) if unordered else words)
        known = fresh
        count = len(set(known.values()))
        # At least twice, so that the colors hold who refers to whom.
        if count == kinds and _INSIDE not in known.values():
            break
        kinds = count
    colors.update(known)


def circles(edges: dict[Node, list[Node]]) -> list[list[Node]]:
    """Return the strongly connected components, each after all those that it refers to (Tarjan)."""
    order: dict[Node, int] = {}
    low: dict[Node, int] = {}
    stack: list[Node] = []
    on_stack: set[Node] = set()
    found: list[list[Node]] = []
    for root in edges:
        if root in order:
            continue
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        path = [(root, iter(edges[root]))]
        while path:
            node, targets = path[-1]
            for target in targets:
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    path.append((target, iter(edges[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    circle: list[Node] = []
                    while not circle or circle[-1] != node:
                        circle.append(stack.pop())
                        on_stack.discard(circle[-1])
                    found.append(circle)
    return found

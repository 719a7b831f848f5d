"""Config files as they are written: strictly read, and which of several holds a key.

Snakemake merges config.yaml, the files of --configfile and the values of --config into one
dictionary; a message must name the file that the reader has to edit.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlcd.utils.errors import UserError

#: How long and how deep values are shown in messages.
_WIDTH = 60


class _Repr(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        # Python writes no number of thousands of digits.
        return (
            hex(value)[:20] + "…" if value.bit_length() > 1000 else super().repr_int(value, level)
        )


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * _WIDTH
_REPR.maxdict = _REPR.maxlist = _REPR.maxset = _REPR.maxlevel = 4
#: What PyYAML raises: errors of its own, and others where a value does not fit its tag.
_BAD_VALUES = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
#: Values that a file may hold with its aliases written out. A few lines can stand for billions.
_MOST_VALUES = 100_000
#: What YAML 1.1 reads as another number than people do: 010 is 8, 1:30 is 90.
_MISREAD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Refused(yaml.constructor.ConstructorError):
    """What YAML would take, and would take for something else than is meant."""


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping holds each key once, and a number is what it looks like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            # Keys of a merge (<<) may be set again beside it: that is what it is for.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                problem = f"the key {shown(key)} stands twice; keep one"
                raise _Refused(None, None, problem, key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else str(key))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number. Raises an error for one that means another than it looks."""
        text = self.construct_scalar(node)
        if _MISREAD.fullmatch(text):
            problem = f"{shown(text)} is ambiguous in YAML; write a plain number, or quote it"
            raise _Refused(None, None, problem, node.start_mark)
        read = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        try:
            number: int | float = read(node)
            str(number)  # Python writes no number of thousands of digits
        except ValueError:
            problem = f"{shown(text)} is not readable as a number"
            raise _Refused(None, None, problem, node.start_mark) from None
        return number

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _bounded(node, {})
        return self.construct_document(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _bounded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values `node` stands for, aliases written out; refuse too many, and cycles.

    `known` holds the counts of nodes seen, 0 while one is counted.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            problem = "an alias (*) stands within what it names"
            raise _Refused(None, None, problem, node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                count += _bounded(part, known)
    if count > _MOST_VALUES:
        problem = f"more than {_MOST_VALUES:,} values once its aliases (*) are written out"
        raise _Refused(None, None, problem, node.start_mark)
    known[id(node)] = count
    return count


def read(path: str | Path) -> dict[str, Any]:
    """Return the values of a YAML or JSON file.

    Raises :class:`UserError`, one line with file and line number, for a file that is missing, not
    readable as YAML, or holds a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as YAML: no UTF-8 ({error.reason})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None
    try:
        # JSON may be indented by tabs, which YAML refuses.
        values = _json(text) if "\t" in text and _is_json(text) else yaml.load(text, _Loader)
    except _Refused as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    except _BAD_VALUES as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: not readable as YAML: lists or keys too deep") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys such as 'cluster:', got {type(values).__name__}")
    return values


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise _Refused(None, None, f"the key {shown(key)} stands twice; keep one")
            values[key] = value
        return values

    return json.loads(text, object_pairs_hook=once)


def shown(key: Any) -> str:
    """Return a key for a message: as it is if it is a short word, else :func:`quoted`."""
    plain = isinstance(key, str) and key.isprintable() and 0 < len(key) <= 2 * _WIDTH
    return str(key) if plain else quoted(key)


def quoted(value: Any) -> str:
    """Return a value for a message as Python writes it: one line, its middle left out if long."""
    return " ".join(_REPR.repr(value).split("\n"))


def _one_line(error: Exception) -> str:
    """Return what is wrong and in which line, without the excerpt that spans several."""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f"line {mark.line + 1}: {problem}" if mark else problem


class Origins:
    """Config files in the order in which Snakemake merges them, and the values of --config."""

    def __init__(self, paths: Iterable[str | Path], command_line: Mapping[str, Any]) -> None:
        """Read every file of `paths`, the last of which wins. Raises :class:`UserError`."""
        self._sources = [(str(path), read(path)) for path in paths]
        self.default = self._sources[-1][0] if self._sources else "config"
        if command_line:
            self._sources.append(("--config", dict(command_line)))

    @classmethod
    def of_snakemake(
        cls,
        paths: Iterable[str | Path],
        given: Sequence[str | Path],
        command_line: Mapping[str, Any],
    ) -> Origins:
        """Return the origins of a run: `paths` in any order, those `given` as options come last."""
        last = [Path(path).absolute() for path in given]
        first = [path for path in paths if Path(path).absolute() not in last]
        return cls([*first, *map(_shown, last)], command_line)

    def __call__(self, path: Sequence[str | int]) -> str:
        """Return the file whose value at `path` (section, key, …) counts, or '--config'.

        Of a key that stands nowhere, such as one that is missing, the file that holds the longest
        part of its path.
        """
        for length in range(len(path), 0, -1):
            for source, values in self._sources[::-1]:
                if _holds(values, path[:length]):
                    return source
        return self.default


def key_of(message: str) -> list[str]:
    """Return the path of the key that a message begins with, as 'label.top: …'; [] for none."""
    found = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*): ", message)
    return found[1].split(".") if found else []


def _shown(path: Path) -> Path:
    """Return a path below the working directory as people gave it, relative."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _holds(values: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return False
    return True

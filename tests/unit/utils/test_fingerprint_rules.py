"""The rules of fingerprints one by one, on packages of a few lines."""

import pytest

from helpers.code_trees import package
from mlcd.utils.fingerprint.code import Code

_HEAD = (
    "import json, math, warnings\n"
    "from mlcd.utils.errors import UserError\n"
    "from mlcd.utils.logging import LOGGER\n"
)


def fingerprint(folder, modules, stage="train"):
    room = {"utils/errors.py": "class UserError(Exception): ...", "utils/logging.py": "LOGGER = 1"}
    return Code(package(folder, {**room, **modules})).hash(stage)


def run_of(body):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return {"stages/train.py": f"{_HEAD}def run(a, section):\n{lines}"}


SAME = {
    "raised": ("raise UserError('a')", "raise UserError(f'b {a}')"),
    "raised from": ("raise ValueError('a')", "raise ValueError('b') from None"),
    "what serves a message": (
        "if a: raise UserError('no')\nreturn a",
        "near = max(1, a * 2)\nif a: raise UserError(f'no, {near}')\nreturn a",
    ),
    "logged": ("return a", "if a > 3:\n    LOGGER.info('%s', a)\nreturn a"),
    "warned and printed": ("return a", "warnings.warn(str(a))\nprint('told', a)\nreturn a"),
    "help": ("return a.add('x', help='a')", "return a.add('x', help='b', metavar='N')"),
    "assertion's message": ("assert a\nreturn a", "assert a, 'why'\nreturn a"),
    "annotation": ("b = a\nreturn b", "b: int = a\nreturn b"),
    "alias of an import": (
        "import os.path as p\nreturn p.join(a)", "from os import path\nreturn path.join(a)",
    ),
    "comprehension": ("return [b for b in a]", "return [c for c in a]"),
}  # fmt: skip
OTHER = {
    "operator": ("return a + 1", "return a - 1"),
    "number": ("return a + 1", "return a + 1.0"),
    "class raised": ("raise ValueError(a)", "raise KeyError(a)"),
    "exit code": ("raise SystemExit(1)", "raise SystemExit(2)"),
    "condition of what is raised": (
        "if a > 1: raise UserError('x')\nreturn a", "if a > 2: raise UserError('x')\nreturn a",
    ),
    "locals swapped": ("b, c = a\nreturn b - c", "b, c = a\nreturn c - b"),
    "parameters swapped": ("return a - section", "return section - a"),
    "printed into a file": ("print(1, file=a)", "print(2, file=a)"),
    "printed for a program": ("print(json.dumps(a))", "print(json.dumps([a]))"),
    "effect in what is dropped": ("b = a.pop()\nreturn a", "return a"),
    "other function from outside": ("return math.sin(a)", "return math.cos(a)"),
    "order": ("a.x()\na.y()", "a.y()\na.x()"),
    "default of a nested function": (
        "def f(b=1): return b\nreturn f()", "def f(b=2): return b\nreturn f()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_nothing_changes(tmp_path, name):
    one, other = (fingerprint(tmp_path / str(i), run_of(body)) for i, body in enumerate(SAME[name]))
    assert one == other


@pytest.mark.parametrize("name", OTHER)
def test_a_change_counts(tmp_path, name):
    one, other = (
        fingerprint(tmp_path / str(i), run_of(body)) for i, body in enumerate(OTHER[name])
    )
    assert one != other


#: A stage that reaches other modules in every way there is.
WAYS = {
    "call": "from mlcd.other import f\ndef run(a, s): return f(a)",
    "module": "from mlcd import other\ndef run(a, s): return other.f(a)",
    "relative": "from ..other import f\ndef run(a, s): return f(a)",
    "lazy": "def run(a, s):\n    from mlcd.other import f\n    return f(a)",
    "re-export": "from mlcd.room import f\ndef run(a, s): return f(a)",
    "star": "from mlcd.other import *\ndef run(a, s): return f(a)",
    "full name": "import mlcd.other\ndef run(a, s): return mlcd.other.f(a)",
    "string": "import importlib\ndef run(a, s): return importlib.import_module('mlcd.other').f(a)",
    "string with a hole": "from importlib import import_module as load\n"
    "def run(a, s): return load(f'mlcd.{a}').f(a)",
    "program": "def run(a, s): a.call('python', '-m', 'mlcd.other')",
    "annotation": "from mlcd.other import K\ndef run(a, s: K): return s.value",
    "alias in an annotation": "from mlcd.room import Kinds\ndef run(a, s: Kinds): return s.value",
    "base class": "from mlcd.other import K\nclass L(K): pass\ndef run(a, s): return L().value",
    "effects": "import mlcd.other\ndef run(a, s): return a",
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_another_module_is_followed(tmp_path, way):
    found = []
    for value in (1, 2):
        other = (
            f"import torch\ntorch.limit({value})\ndef f(a): return a + {value}\n"
            f"class K:\n    @property\n    def value(self): return {value}\n"
        )
        room = "from mlcd.other import K, f\nKinds = K | None\n"
        modules = {"__init__.py": "", "other.py": other, "room/__init__.py": room}
        modules["stages/train.py"] = WAYS[way]
        found.append(fingerprint(tmp_path / str(value), modules))
    assert found[0] != found[1]


def test_methods_of_one_class_are_told_apart(tmp_path):
    source = """
class K:
    def more(self, a): return a + 1
    def less(self, a): return a - 1
def run(a, s): return K().{}(a) + K().{}(a) * K().{}(a)
"""
    calls = [("more", "less", "less"), ("less", "more", "more"), ("more", "more", "less")]
    found = {
        fingerprint(tmp_path / str(i), {"stages/train.py": source.format(*call)})
        for i, call in enumerate(calls)
    }
    assert len(found) == 3


def test_names_that_something_outside_knows_count(tmp_path):
    sources = [
        "import dataclasses\n@dataclasses.dataclass\nclass K:\n    {0}: int\n"
        "def run(a, s): return dataclasses.asdict(K(a))",
        "from torch import nn\nclass K(nn.Module):\n    def __init__(self): self.{0} = 1\n"
        "def run(a, s): return K()",
        "def f({0}, other): return {0} - other\ndef run(a, s): return a.call(f)",
        "def f({0}, other): return {0} - other\ndef run(a, s): return f(**a)",
    ]
    for number, source in enumerate(sources):
        one, other = (
            fingerprint(tmp_path / f"{number}{name}", {"stages/train.py": source.format(name)})
            for name in ("one", "two")
        )
        assert one != other, source


def test_functions_that_call_one_another_are_told_apart(tmp_path):
    source = """
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else {}(n - 1)
def run(a, s): return even(a)
"""
    found = {
        fingerprint(tmp_path / name, {"stages/train.py": source.format(name)})
        for name in ("even", "odd")
    }
    assert len(found) == 2


def test_an_unreached_definition_does_not_count(tmp_path):
    source = "def run(a, s): return a\ndef other(): return {}\n"
    one, two = (
        fingerprint(tmp_path / str(i), {"stages/train.py": source.format(i)}) for i in range(2)
    )
    assert one == two

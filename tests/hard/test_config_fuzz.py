"""Broken configs, made at random from a seed: each is refused in plain lines, never by a traceback.

    python -m pytest tests/hard/test_config_fuzz.py        MLCD_FUZZ_SEED=7 for other configs

A config that is broken by chance into a sound one passes. What is looked at is what a run looks at
before any work: the file is read, validated, and compared with the lists, files and libraries.
"""

# ruff: noqa: E501  (the broken values are data)

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from mlcd.config import Config, files, validate
from mlcd.config.base import Section
from mlcd.data import at_start
from mlcd.data.url_lists import plan
from mlcd.utils.errors import UserError

CASES = 300
SEED = int(os.environ.get("MLCD_FUZZ_SEED", "0"))

#: Text of YAML for a value, each of which some key takes for something that it is not.
VALUES = [
    "null", "~", "true", "no", "''", "' '", "0", "-1", "1", "010", "0o17", "0x1F", "1:30", "1e309", "1_000",
    "-0.0", ".nan", ".inf", "-.inf", "1e-400", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "2.5", "'3'",
    "[]", "[1, 2]", "[[1]]", "[null]", "['', '']", "{}", "{a: 1}", "{1: 2}", "{? [a, b] : c}",
    "2024-01-01", "2024-01-01 10:00:00", "2024-13-45", "!!binary aGVsbG8=", "!!binary '%%%'", "!!set {a, b}",
    "!!python/object/apply:os.getpid []", "!!timestamp x", "!!int x", "!!float x", "!unknown x", "größe", "日本語",
    '"\\u202e"', '"\\ud800"', '"a\\nb"', '"a\\0b"', '"\\x07"', "'" + "x" * 100_000 + "'", "'" + "x/" * 3000 + "'",
    "/", "/dev/null", "/dev/zero", "..", "~/x", "'{chunk}'", "'{'", "'a b'", "$HOME", "'*'", "'[' ", "&x [*x]",
    "*none", "'<<'", "?", "@x", "`x`", "%x", "- x", "|\n      text", "open_clip:", "open_clip:../x", "mlcd_vit_",
    "ViT-L-14", "resnet10t.x", "hf-hub:", "local-dir:",
]  # fmt: skip

#: Whole files.
FILES = [
    "", "- a", "text", "1", "\t", "{", "a: b: c", "'", "\x00", "%YAML 9.9\n---\na: 1", "a: 1\n---\nb: 2", "? a",
    "[" * 3000, "{a: " * 3000, "a:\n" * 3, '{\n\t"train": {"lr": 1, "lr": 2}\n}', '{\n\t"a": ' + "[" * 100_000,
    "train: &t {lr: 1}\ntext: *t", "a: &a {<<: *a}", "train:\n  <<: [1]\n", "train: {<<: 3}", "'train': {}\ntrain: {}",
    "? {a: b}\n: c", "? [a]\n: c", "1: 2", "null: 1", "true: 1", "2024-01-01: 1", "train: {1: 2}", "é" * 70_000 + ": 1",
    "a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(
        f"c{n}: &c{n} [{', '.join(['*' + (f'c{n - 1}' if n else 'b')] * 9)}]\n" for n in range(12)
    ),
    "a: &a {x: 1}\nb: &b {<<: [*a,*a,*a,*a]}\n" + "".join(
        f"c{n}: &c{n} {{<<: [{', '.join(['*' + (f'c{n - 1}' if n else 'b')] * 9)}], k{n}: 1}}\n"
        for n in range(12)
    ),
]  # fmt: skip


def paths(model: type[Section], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        found.append((*prefix, name))
        if isinstance(kind, type) and issubclass(kind, Section):
            found += paths(kind, (*prefix, name))
    return found


KEYS = paths(Config)


def misspelled(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word))
    return chance.choice([
        word[:place] + word[place + 1 :], word + "s", word.upper(), word.replace("_", "-"), word * 400,
        f'"{word}\\n"', f'"{word}\\u00e9"',
    ])  # fmt: skip


def nested(keys: tuple[str, ...], value: str) -> str:
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(keys)]
    return "\n".join(lines) + f" {value}\n"


def broken(chance: random.Random) -> str:
    """Return the text of a config file with one or two mistakes, or what may be one."""
    makers: list[Callable[[], str]] = [
        lambda: nested(chance.choice(KEYS), chance.choice(VALUES)),
        lambda: nested(chance.choice(KEYS), chance.choice(VALUES)) * 2,
        lambda: nested((*chance.choice(KEYS), "x"), chance.choice(VALUES)),
        lambda: nested((misspelled(chance.choice(KEYS)[-1], chance),), chance.choice(VALUES)),
        lambda: nested(("train", misspelled("model", chance)), chance.choice(VALUES)),
        lambda: f"evaluate: {{datasets: [{{name: {chance.choice(['a', 'mnist', '[]', '1', 'a/b'])}, "
                f"path: {chance.choice(['x', '/', 'demo/openclipart.tar', '1', 'sklearn:x'])}, "
                f"{chance.choice(['tasks', 'metric', 'tags_field', 'x'])}: [x]}}]}}\n",
        lambda: f"ablate: {{grids: [{{{chance.choice(['k', 'l', 'r', 'loss', 'seeds', 'x'])}: "
                f"{chance.choice(['[0]', '[-1]', '[1, 1]', '[1.5]', '[.nan]', '3', '[x]', '[99999999999]'])}}}]}}\n",
        lambda: nested(("metadata",), chance.choice(["[x]", "['']", "['*']", "[demo]", "[/dev/null]",
                                                    "['demo/**']", "[README.md]", "['a\\0.csv']"])),
        lambda: json.dumps({"train": {chance.choice(["lr", "seed", "x"]): chance.choice([None, [], {}, "x", 1e400])}}),
    ]  # fmt: skip
    text = chance.choice(makers)()
    if chance.random() < 0.2:
        text = text.replace(":", chance.choice(["", "::", " :", ":\t"]), 1)
    return text


def look(path: Path) -> str | None:
    """Return what a run would say of a config; None if it is sound."""
    try:
        values = files.read(path)
        config = validate(Config, values, files.Origins([path], {}))
        prepare = config.prepare
        at_start.check(
            config,
            str(path),
            lambda: plan(config.metadata, prepare.chunk_rows, prepare.columns()),
        )
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def configs():
    chance = random.Random(SEED)
    print(f"MLCD_FUZZ_SEED={SEED}")
    return [*FILES, *(broken(chance) for _ in range(CASES - len(FILES)))]


def test_no_config_ends_in_a_traceback(configs, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mine.yaml"
    faults: list[tuple[str, Any]] = []
    refused = 0
    for text in configs:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            told = look(path)
        except Exception as error:
            faults.append((text[:200], repr(error)[:300]))
            continue
        refused += told is not None
        for line in (told or "").splitlines():
            # Of a list the message names the list, and most often the key too.
            of_a_list = any(word in line for word in ("key metadata", "URL list", "prepare."))
            if not line.startswith(f"{path}: ") and not of_a_list:
                faults.append((text[:200], f"names neither file nor key: {line[:300]}"))
            if len(line) > 1500 or not line.isprintable():
                faults.append((text[:200], f"no plain line: {line[:100]!r}, {len(line)}"))
    assert not faults, f"MLCD_FUZZ_SEED={SEED}: {len(faults)}\n" + "\n".join(map(str, faults[:40]))
    assert refused > CASES / 2


def test_most_files_are_read_as_yaml_reads_them(configs, tmp_path):
    """The stricter reader takes nothing for another value than YAML does."""
    path = tmp_path / "mine.yaml"
    same = 0
    for text in configs[len(FILES) :]:
        if "\t" in text:  # of JSON, which YAML refuses
            continue
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            ours = files.read(path)
        except UserError:
            continue
        theirs = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        assert ours == theirs or repr(ours) == repr(theirs)  # not a number equals nothing
        same += 1
    assert same > CASES / 3

"""Broken options for every verb, made at random from a seed: refused in plain lines, no traceback.

    python -m pytest tests/hard/test_option_fuzz.py        MLCD_FUZZ_SEED=7 for other options

The options are those that the verb's parser has. Files do not exist, or are of another kind, in a
folder of the test's own, so no verb gets to its work.
"""

# ruff: noqa: E501  (the broken values are data)

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import shutil
import warnings

import pytest

from mlcd import cli
from mlcd.config import SECTIONS
from mlcd.utils.logging import LOGGER

CASES = 300
SEED = int(os.environ.get("MLCD_FUZZ_SEED", "0"))

VALUES = [
    "", " ", "0", "-1", "1", "010", "1e309", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "2.5", "none", "null", "true",
    "x", "größe", "日本語", "\ud800", "a\nb", "\x07", "\u202e", "x" * 5000, "x/" * 3000, "/", "/dev/null", "/dev/full", "..",
    "~/x", "$HOME", "*", "[", "{", "{}", "[]", '{"a": 1}', '{"a": NaN}', "[" * 100_000, '{"lr": 1e400}', "{'a': 1}", "--",
    "-", "-x", "--x", "empty", "folder", "text.txt", "text.h5", "text.parquet", "text.tar", "text.json", "text.yaml",
    "text.csv", "none/none.h5", "text.txt/below", "folder/new.h5", "cpu", "cuda", "cuda:99", "local", "auto", "8GiB", "1 B",
]  # fmt: skip
#: Verbs that would start programs whatever their options: only what cannot be right is given.
_STARTS = {"run": [["--cores"], ["--cores", "x", "--directory", "none"], ["--no-such-option"], ["\x07"],
                   ["--configfile", "text.txt"], ["--configfile", "none.yaml"], ["--directory", "text.txt"]],
           "doctor": [["--profile", value] for value in VALUES if value not in ("cpu", "cuda", "--", "-")]
           + [["--wait", value, "--profile", "none"] for value in VALUES]
           + [["--config", value, "--wait", "0"] for value in ("text.txt", "none", "folder", "")]}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an empty file, and texts that are called as other kinds of files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    for ending in ("txt", "h5", "parquet", "tar", "json", "yaml", "csv"):
        (tmp_path / f"text.{ending}").write_text("no such thing\n")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def options_of(verb: str) -> list[argparse.Action]:
    """Return what the verb's parser takes."""
    parser = cli._parser([verb])
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return [
        action
        for action in commands.choices[verb]._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]


def words(verb: str, chance: random.Random) -> list[str]:
    """Return options of the verb: all that it requires, some others, with values of any kind."""
    if verb in _STARTS:
        return [verb, *chance.choice(_STARTS[verb])]
    found = [verb]
    for action in options_of(verb):
        if not action.required and chance.random() > 0.12:
            continue
        name = action.option_strings[0] if action.option_strings else None
        if chance.random() < 0.03:
            name = f"{name}s" if name else name
        if name:
            found.append(name)
        if action.nargs != 0:
            # A choice now and then, so that what comes after it is reached.
            choices = list(action.choices) if action.choices else []
            pick = choices if choices and chance.random() < 0.7 else VALUES
            found += chance.choices(pick, k=chance.choice([1, 1, 1, 2, 0]))
    if chance.random() < 0.05:
        found.append(chance.choice(VALUES))
    return found


def outcome(argv: list[str]) -> tuple[int | str | None, str]:
    """Return the status and what was shown."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            status: int | str | None = cli.main(argv)
        except SystemExit as end:
            status = end.code
        finally:
            for handler in list(LOGGER.handlers):
                LOGGER.removeHandler(handler)
                handler.close()
    return status, shown.getvalue()


def test_no_options_end_in_a_traceback(place):
    chance = random.Random(SEED)
    print(f"MLCD_FUZZ_SEED={SEED}")
    verbs = [*SECTIONS, *cli.TOOLS]
    faults = []
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(CASES):
            argv = words(verbs[number % len(verbs)], chance)
            try:
                status, shown = outcome(argv)
            except BaseException as error:
                faults.append((str(argv)[:300], f"raised {error!r}"[:300]))
                continue
            if status not in (0, 2) or "Traceback" in shown:
                faults.append((str(argv)[:300], f"status {status}: {shown[-600:]}"))
    told = "\n\n".join("\n".join(fault) for fault in faults[:40])
    assert not faults, f"MLCD_FUZZ_SEED={SEED}: {len(faults)} of {CASES}\n{told}"

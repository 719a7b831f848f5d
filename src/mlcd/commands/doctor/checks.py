"""What a check says, and the table of all of them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: Results in the order of their weight. A warning does not stop a run.
OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, one of OK, WARN, FAIL, what was seen, and how to fix it."""

    name: str
    result: str
    seen: str
    fix: str = ""


def ok(name: str, seen: str) -> Check:
    return Check(name, OK, seen)


def warn(name: str, seen: str, fix: str) -> Check:
    return Check(name, WARN, seen, fix)


def fail(name: str, seen: str, fix: str) -> Check:
    return Check(name, FAIL, seen, fix)


def show(checks: Iterable[Check]) -> Iterator[Check]:
    """Print checks as they come in, one per row, the fix below; pass them on."""
    width = min(120, max(60, shutil.get_terminal_size().columns)) - 30
    # Paths and names stay whole: they will be copied.
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap
    for check in checks:
        seen = wrap(check.seen) or [""]
        print(f"{check.result:<5} {check.name:<23} {seen[0]}", flush=True)
        for line in seen[1:]:
            print(f"{'':<30}{line}")
        for line in wrap(f"fix: {check.fix}") if check.fix else []:
            print(f"{'':<30}{line}", flush=True)
        yield check

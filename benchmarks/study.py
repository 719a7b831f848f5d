"""What studies share: rows of a CSV, cells that the workflow makes, and tables between marks.

A study trains and scores cells for hours. Each finished cell is a row of a CSV beside the study's
page, and the CSV alone says what is left: see scenes_study.py and regions_study.py.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlcd.stages.ablate.intervals import Interval
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
_END = "<!-- end of tables -->"
Row = TypeVar("Row", bound=tuple[Any, ...])


class Form(NamedTuple):
    """The CSV of a study: the names of its `keys`, each with what reads it, and of its metrics.

    A row is a tuple of the keys, scores, chance (both by name of metric) and setting. `lacking`:
    metrics that a row may be without. `what`: what a row is; `config`: the file of the setting.
    """

    keys: Mapping[str, Callable[[str], Any]]
    metrics: Sequence[str]
    what: str
    config: str
    lacking: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        chance = (f"chance_{name}" for name in self.metrics)
        return (*self.keys, *self.metrics, *chance, "setting")

    def read(self, path: Path, make: Callable[..., Row], setting: str | None = None) -> list[Row]:
        """Return the rows of a CSV, made by `make`; none where it is not there.

        Raises :class:`UserError` if it is not such a table, a row stands twice, or, where `setting`
        is given, a row is of another.
        """
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != self.columns:
                raise UserError(
                    f"{path}: expected the columns {','.join(self.columns)}; move it away"
                )
            try:
                rows = [make(*self._values(line)) for line in reader]
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {reader.line_num} is not whole; remove it") from None
        if len({row[: len(self.keys)] for row in rows}) < len(rows):
            raise UserError(
                f"{path}: {self.what} stands twice with one seed; remove one of the lines"
            )
        for row in rows:
            if setting is not None and row[-1] != setting:
                raise UserError(
                    f"{path}: holds rows of setting {row[-1]}, and this one is {setting}; move it "
                    f"away, or undo the change of {self.config}"
                )
        return rows

    def _values(self, line: Mapping[str, str]) -> list[Any]:
        there = [name for name in self.metrics if line[name] or name not in self.lacking]
        return [
            *(read(line[name]) for name, read in self.keys.items()),
            {name: float(line[name]) for name in there},
            {name: float(line[f"chance_{name}"]) for name in there},
            line["setting"],
        ]

    def write(self, path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write all rows, in their order; equal rows give equal bytes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for *keys, scores, chance, setting in rows:
            cells = [
                f"{found[name]:.4f}" if name in found else ""
                for found in (scores, chance)
                for name in self.metrics
            ]
            writer.writerow([*keys, *cells, setting])
        write_text(path, text.getvalue())


def parser(doc: str | None, *, folder: str, page: Path, unit: str) -> argparse.ArgumentParser:
    """Return the options of a study of `unit`, in `folder` by default."""
    found = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    found.add_argument("--folder", type=Path, help=f"results [{folder}]")
    found.add_argument(
        "--table", type=Path, default=page.with_suffix(".csv"), help="the CSV [%(default)s]"
    )
    found.add_argument("--grounds", type=Path, help="photographs, see demo/scenes.py")
    found.add_argument("--cores", type=int, default=2)
    found.add_argument("--limit", type=int, help=f"stop after so many {unit}")
    found.add_argument(
        "--until", type=datetime.time.fromisoformat, metavar="HH:MM",
        help="start nothing at or after this time of the day",
    )  # fmt: skip
    found.add_argument("--plan", action="store_true", help="print what is left, and run nothing")
    found.add_argument("--choose", action="store_true", help="compare settings, on other scenes")
    return found


def is_late(arguments: argparse.Namespace) -> bool:
    """True if nothing more is to be started today."""
    until: datetime.time | None = arguments.until
    return until is not None and datetime.datetime.now().time() >= until


def compose(data: Path, seed: int, grounds: Path | None, words: Sequence[object]) -> None:
    """Compose scenes by demo/scenes.py with the options `words`, or see that `data` has just them.

    It refuses scenes of other options, and of other photographs where these are at hand.
    """
    options = ["--output", data, "--seed", seed, *words]
    options += ["--grounds", grounds] if grounds else []
    script = ROOT / "demo" / "scenes.py"
    if subprocess.run([sys.executable, script, *map(str, options)]).returncode:
        raise UserError(f"{data}: no scenes of this study, as told above; name another --folder")


@contextlib.contextmanager
def ended_with_us(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a group of its own; end it if the block is left before it has ended."""
    child = subprocess.Popen(words, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            # As Ctrl-C: Snakemake ends its jobs, and its lock.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            child.wait()


def make(
    configs: Sequence[Path],
    targets: Sequence[str],
    cores: int,
    collect: Callable[[float], object],
    seconds: float,
) -> None:
    """Have the workflow make files; `collect` what is there every `seconds`, and at the end.

    It is given the time (seconds since 1970) from which a file counts: while the workflow runs,
    older ones may be of other inputs, and be made again. Raises :class:`UserError`.
    """
    words = [
        sys.executable, "-m", "mlcd", "run", "--profile", "profiles/local", "--cores", str(cores),
        "--configfile", *map(str, configs), "--", *targets,
    ]  # fmt: skip
    start = time.time()
    with ended_with_us(words) as child:
        while child.poll() is None:
            time.sleep(seconds)
            collect(start)
    collect(start if child.returncode else 0.0)
    if child.returncode:
        raise UserError(f"mlcd run ended with status {child.returncode}; see its lines above")


def shown(found: Interval | None, sign: str = "") -> str:
    """Return a mean and half of its interval; nothing for None."""
    if found is None:
        return ""
    return f"{found.mean:{sign}.4f}" + ("" if found.half is None else f" ± {found.half:.4f}")


def verdict(found: Interval) -> str:
    """Return above, below, or open; one seed decides nothing."""
    return found.verdict if found.half is not None else "(one seed)"


def with_tables(page: Path, script: str, text: str) -> str:
    """Return the text of a page with `text` between the marks of benchmarks/`script`.

    Raises :class:`UserError` without the marks.
    """
    mark = f"<!-- tables: written by benchmarks/{script} -->"
    head, begin, rest = page.read_text(encoding="utf-8").partition(mark)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise UserError(f"{page}: lacks the marks of its tables: {mark} and {_END}")
    return f"{head}{mark}\n\n{text}\n\n{_END}{tail}"


def program(name: str, main: Callable[[], None]) -> None:
    """Run `main` as a program: one line for what the user can fix; what runs ends with it."""
    # As Ctrl-C. A shell has what it starts in its background ignore SIGINT, and so would all that
    # is started here: nothing would end when we do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

"""Progress for people and logs for later: both on rank 0 only."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from mlcd.utils.units import duration

#: Seconds between two lines of progress.
_TELL_EVERY = 10.0
Item = TypeVar("Item")
LOGGER = logging.getLogger("mlcd")


def is_main_rank() -> bool:
    """True in a process that is rank 0, or that is no rank at all."""
    return int(os.environ.get("RANK", "0")) == 0


def setup_logging(log_file: str | os.PathLike[str] | None = None, name: str = "mlcd") -> None:
    """Send INFO lines with the time and `name` to stderr and, if given, to `log_file` (appended).

    With a log file, :func:`progress` writes lines instead of bars: several jobs share a terminal.
    """
    handlers: list[logging.Handler] = []
    if is_main_rank():
        handlers.append(logging.StreamHandler(sys.stderr))
    if log_file is not None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(log_file, encoding="utf-8", errors="backslashreplace"))
    formatter = logging.Formatter(f"%(asctime)s {name} %(levelname)s %(message)s", "%H:%M:%S")
    LOGGER.handlers.clear()
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in handlers or [logging.NullHandler()]:
        handler.setFormatter(formatter)
        LOGGER.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A log file. Where its disk is full, lines are lost and the work continues."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that lines are lost; logging itself would print a traceback for each."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told and is_main_rank():
            self._told = True
            with contextlib.suppress(OSError):
                print(f"{self.baseFilename}: not all lines are logged: {error}", file=sys.stderr)

    def close(self) -> None:
        """Close the file; what its disk does not take is lost."""
        with contextlib.suppress(OSError):
            super().close()


def progress(
    items: Iterable[Item],
    *,
    total: int | None = None,
    initial: int = 0,
    label: str,
    unit: str = "step",
    size: Callable[[Item], int] | None = None,
    said: Callable[[], str] | None = None,
) -> Iterator[Item]:
    """Iterate with a bar on a terminal, or with a log line every 10 s elsewhere; rank 0 only.

    `initial`: how many units were done before, in a run that this one resumes; `total`, by default
    those and the number of `items`, counts them too. `size` says how many units an item is, one by
    default; `unit` is the word for one. `said` gives words of the moment, such as the loss.
    """
    if not is_main_rank():
        yield from items
        return
    if total is None and size is None and isinstance(items, Sized):
        total = initial + len(items)
    has_log_file = any(isinstance(handler, logging.FileHandler) for handler in LOGGER.handlers)
    if sys.stderr.isatty() and not has_log_file:
        with tqdm(total=total, initial=initial, desc=label, unit=unit) as bar:
            for item in items:
                yield item
                if said:
                    bar.set_postfix_str(said(), refresh=False)
                bar.update(size(item) if size else 1)
        return
    start = last = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += size(item) if size else 1
        now = time.monotonic()
        if now - last >= _TELL_EVERY:
            line = _line(label, unit, initial + count, total, count / (now - start))
            words = said() if said else ""
            LOGGER.info("%s", f"{line}, {words}" if words else line)
            last = now


def _line(label: str, unit: str, done: int, total: int | None, speed: float) -> str:
    """Return a line of progress; `mlcd status` reads it (:data:`PROGRESS`)."""
    of = left = ""
    if total:
        of = f" of {total}"
        left = f", {duration(max(0, total - done) / speed)} left" if speed > 0 else ""
    return f"{label}: {done}{of} {unit}s, {speed:.3g} {unit}s/s{left}"


#: What :func:`progress` writes into a log: label, done, total, unit, speed in units per second.
PROGRESS = re.compile(r"(.+): (\d+)(?: of (\d+))? (.+)s, ([\d.e+-]+) \4s/s(?:, .*)?$")

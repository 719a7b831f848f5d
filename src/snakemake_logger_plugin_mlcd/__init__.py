"""`snakemake --logger mlcd`: one line when a job begins and one when it ends, in place of blocks.

The profiles ask for it. Snakemake's log file in .snakemake/log is as ever, with all details. Dry
runs, and what Snakemake says beside its jobs, are shown as it would show them.

Snakemake finds a plugin by the name of its module, which is why this one lies beside mlcd.
"""

from __future__ import annotations

import sys
import time
from logging import LogRecord
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

#: What Snakemake says of itself while it works; it helps nobody to follow a run.
_NOISE = (
    "Assuming unrestricted shared filesystem", "Building DAG of jobs", "Select jobs to execute",
    "Using shell", "host: ",
)  # fmt: skip
_QUIET = frozenset((LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO, LogEvent.JOB_STARTED))


class Lines(DefaultFormatter):  # type: ignore[misc]
    """Formats a run's records as lines; '' for those that are not shown."""

    def __init__(self, quiet: Any, *, show_failed_logs: bool) -> None:
        super().__init__(quiet, show_failed_logs)
        #: jobid → name, and when it began.
        self._jobs: dict[int, tuple[str, float]] = {}
        self._finished, self._planned = 0, 0

    def format(self, record: LogRecord) -> str:
        """Return the line of a record."""
        event = getattr(record, "event", None)
        if event in _QUIET or (event is None and str(record.msg or "").startswith(_NOISE)):
            return ""
        return str(super().format(record))

    def format_run_info(self, msg: dict[str, Any]) -> str:
        """Return the plan in one line: how many jobs, and of which rules."""
        stats = dict(msg["stats"])
        self._planned = int(stats.pop("total", 0))
        rules = ", ".join(f"{rule} {count}" for rule, count in stats.items() if rule != "all")
        return f"{_now()}   {self._planned} jobs: {rules}"

    def format_job_info(self, msg: dict[str, Any]) -> str:
        """Return the line of a job that begins."""
        values = [str(value) for value in dict(msg["wildcards"]).values()]
        name = " ".join([msg["rule_name"], *values])
        self._jobs[msg["jobid"]] = name, time.monotonic()
        return "" if msg["rule_name"] == "all" else f"{_now()} ▶ {name}"

    def format_job_finished(self, msg: dict[str, Any]) -> str:
        """Return the line of a job that has ended, with its time."""
        name, since = self._jobs.pop(msg["job_id"], ("", 0.0))
        self._finished += 1
        if not name or name == "all":
            return ""
        took = _duration(time.monotonic() - since)
        return f"{_now()} ✓ {name}: {took}, {self._finished} of {self._planned} jobs"

    def format_progress(self, msg: dict[str, Any]) -> str:
        """Return nothing: a finished job's line has it."""
        return ""

    def format_job_error(self, msg: dict[str, Any]) -> str:
        """Return Snakemake's own block: here details count."""
        name = self._jobs.pop(msg["jobid"], (msg["rule_name"], 0.0))[0]
        return f"{_now()} ✗ {name}\n{super().format_job_error(msg)}"


class LogHandler(LogHandlerBase):
    """Writes the lines to stderr, as Snakemake's own handler writes its blocks."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._stream = ColorizingTextHandler(
            nocolor=settings.nocolor, stream=sys.stdout if settings.stdout else sys.stderr
        )
        if not settings.dryrun:
            self._stream.setFormatter(
                Lines(settings.quiet, show_failed_logs=settings.show_failed_logs)
            )
        else:
            self._stream.setFormatter(DefaultFormatter(settings.quiet, settings.show_failed_logs))

    def emit(self, record: LogRecord) -> None:
        """Write one record."""
        # One line per job: no blank line before it.
        self._stream.last_msg_was_job_info = not self.common_settings.dryrun
        self._stream.emit(record)

    @property
    def writes_to_stream(self) -> bool:
        """Whether it takes the place of Snakemake's handler of the terminal."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Whether it takes the place of Snakemake's log file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether it has a filter of its own."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Whether it has a formatter of its own."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Whether it wants the graph of rules."""
        return False


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _duration(seconds: float) -> str:
    from mlcd.utils.units import duration

    return duration(seconds)

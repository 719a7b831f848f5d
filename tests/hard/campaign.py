"""The campaign: what breaks a run, tried at random on a small real one, within a given time.

    python tests/hard/campaign.py --seed 1 --minutes 40            all parts
    python tests/hard/campaign.py --part flips,kills --minutes 10  some
    python tests/hard/campaign.py --seed 1 --only flips/NAME/7     one case again
    python tests/hard/campaign.py --short                          under a minute, for each change

Prints a table (Markdown) and writes a line of JSON per case. Ends with 1 if a case has a fault.
Everything lies below one folder of its own in the system's temporary folder.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import pkgutil
import random
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import disks
import flips
import fuzz
import hostile
import kills
import writers
from cases import FINE, Case, Result, adopt_orphans, end_all, remove, run_cases
from jobs import Reference

import mlcd

#: Part → its share of the time, the most cases it needs, and what it proves.
PARTS = {
    "flips": (0.35, 1000, "a bit turned or the end cut off, then read: one line or the same bytes"),
    "kills": (0.20, 100, "a process of a stage killed at random: the same bytes at the end"),
    "runs": (0.15, 5, "the same of whole `mlcd run` runs"),
    "disks": (0.15, 60, "full, read-only, small /dev/shm: one line, then the same bytes"),
    "server": (0.05, 10, "hostile answers to a download: it ends, every row counted"),
    "configs": (0.02, 1, "broken configs: refused in plain lines"),
    "options": (0.02, 1, "broken options of every verb: refused in plain lines"),
    "writers": (0.10, 30, "two writers at once: one of them whole, or refused by a line"),
}  # fmt: skip
#: Cases of each part in the short form, and its jobs.
SHORT = {"flips": 20, "kills": 4, "server": 1}
SHORT_RULES = ("prepare", "download", "embed", "cluster", "label", "label_summary")
#: Imported once; each case is a fork, which has them already.
LIBRARIES = (
    "mlcd.utils.compat", "torch", "faiss", "timm", "h5py", "pandas", "pyarrow.parquet",
    "img2dataset",
    # Of the stages after the labels.
    "matplotlib.pyplot", "sklearn.linear_model", "open_clip", "deepspeed",
)  # fmt: skip


def main() -> int:
    """Parse the command line and run; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--seed", type=int, default=None, help="of all choices [drawn, and printed]"
    )
    parser.add_argument("--minutes", type=float, default=40, help="after which no case starts [40]")
    parser.add_argument("--part", default=",".join(PARTS), help="parts, separated by commas [all]")
    parser.add_argument("--only", help="one case, by the name that its fault was printed with")
    parser.add_argument("--short", action="store_true", help="a few cases of some parts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cases at once")
    parser.add_argument("--json", type=Path, default=None, help="a line per case [campaign.jsonl]")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["SLURM_CONF"] = os.devnull
    adopt_orphans()
    scratch = Path(tempfile.mkdtemp(prefix="mlcd-hard-"))
    try:
        return Campaign(arguments, seed, scratch).run()
    finally:
        end_all()
        remove(scratch)


class Campaign:
    """All parts in turn, their record, and the table."""

    def __init__(self, arguments: argparse.Namespace, seed: int, scratch: Path) -> None:
        self.arguments, self.seed, self.scratch = arguments, seed, scratch
        self.results: list[Result] = []
        self.start = time.monotonic()
        self.end = self.start + 60 * arguments.minutes
        chosen = list(SHORT) if arguments.short else arguments.part.split(",")
        if arguments.only:
            part = arguments.only.split("/")[0]
            whole = "whole run" in arguments.only
            chosen = ["runs" if whole else part]
        self.parts = [part for part in PARTS if part in chosen]
        if not self.parts:
            raise SystemExit(f"--part: no such part; there are {', '.join(PARTS)}")
        self.record = arguments.json or Path("campaign.jsonl")

    def run(self) -> int:
        """Make the reference, run the parts, print the table."""
        modules = pkgutil.walk_packages(mlcd.__path__, "mlcd.")
        libraries = LIBRARIES[:-4] if self.arguments.short else LIBRARIES
        # The tools of `mlcd track` are extras, and no stage's.
        left_out = ("__main__", ".track.to_")
        ours = (one.name for one in modules if not any(word in one.name for word in left_out))
        for name in (*libraries, *ours):
            importlib.import_module(name)
        self.reference = self._make()
        with self.record.open("w") as record:
            for part, until in self._schedule():
                for result in self._results(part, until):
                    self.results.append(result)
                    record.write(result.line(self.seed) + "\n")
                    record.flush()
                    if result.fault:
                        self._tell(result)
        print(self.table(), flush=True)
        return 1 if any(result.fault for result in self.results) else 0

    def _make(self) -> Reference:
        reference = Reference(self.scratch, SHORT_RULES if self.arguments.short else ())
        reference.make(self.arguments.workers)
        self._say(f"reference made: {len(reference.jobs)} jobs")
        return reference

    def _schedule(self) -> Iterator[tuple[str, float]]:
        """Yield part and the moment after which it starts no case; unused time goes to the rest."""
        for index, part in enumerate(self.parts):
            left = sum(PARTS[one][0] for one in self.parts[index:])
            now = time.monotonic()
            yield part, now + max(0.0, self.end - now) * PARTS[part][0] / left

    def _results(self, part: str, until: float) -> Iterator[Result]:
        self._say(f"{part}: {PARTS[part][2]}")
        found = self._cases(part)
        if self.arguments.only:
            name = self.arguments.only
            found = (case for case in found if f"{case.part}/{case.kind}/{case.number}" == name)
            most, until = 1, float("inf")
        else:
            most = SHORT[part] if self.arguments.short else PARTS[part][1]
        workers = self.arguments.workers if part not in ("runs",) else 1
        yield from run_cases(
            itertools.islice(found, most),
            self.scratch / "cases",
            self.seed,
            workers,
            until,
        )

    def _cases(self, part: str) -> Iterator[Case]:
        if part == "flips":
            return flips.cases(self.reference, random.Random(self.seed))
        if part == "kills":
            return kills.cases(self.reference)
        if part == "server":
            return hostile.cases(self.scratch)
        if part in fuzz.MODULES:
            return fuzz.cases(part)
        if part == "writers":
            return writers.cases(self.reference)
        if part == "disks":
            if disks.possible():
                return disks.cases(self.reference)
            self._say("disks: skipped, this process may make no namespaces (it needs root)")
            return iter(())
        made, seconds = kills.whole_reference(self.reference, self.scratch)
        return _in_turn(
            kills.runs(self.reference, made, seconds), writers.runs(self.reference, made)
        )

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:6.0f} s] {text}", flush=True)

    def _tell(self, result: Result) -> None:
        self._say(f"{result.outcome.upper()}: {result.name}")
        print("    " + result.told.strip().replace("\n", "\n    "))
        program = Path(os.path.relpath(__file__))
        print(f"    again: python {program} --seed {self.seed} --only {shlex.quote(result.name)}")

    def table(self) -> str:
        """Return the goals, then the results by part and kind, as Markdown."""
        lines = ["", "| goal | measured |", "|---|---|", *self._goals(), ""]
        lines += ["| part | what | cases | as it should be | faults |", "|---|---|---:|---|---|"]
        groups: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            groups.setdefault((result.part, _group(result)), []).append(result)
        for (part, kind), results in sorted(groups.items()):
            counts: Counter[str] = Counter()
            for result in results:
                counts[result.outcome] += _cases([result])
            fine = ", ".join(f"{counts[one]} {one}" for one in FINE if counts[one])
            bad = ", ".join(f"{n} {one}" for one, n in sorted(counts.items()) if one not in FINE)
            lines.append(f"| {part} | {kind} | {_cases(results)} | {fine} | {bad or '0'} |")
        return "\n".join(lines)

    def _goals(self) -> Iterator[str]:
        """Yield a row for each goal that the parts which were run can show."""
        by_part: dict[str, list[Result]] = {}
        for result in self.results:
            by_part.setdefault(result.part, []).append(result)
        if found := by_part.get("kills"):
            kills = sum(result.counts.get("kills", 0) for result in found)
            equal = sum(result.outcome == "equal" for result in found)
            yield f"| equal bytes after kills | {equal} of {len(found)} runs, {kills} kills |"
        if found := by_part.get("flips"):
            silent = sum(result.outcome == "SILENT" for result in found)
            yield f"| no silent difference | {silent} in {len(found)} flips and cuts |"
        for part in ("configs", "options"):
            if found := by_part.get(part):
                bad = sum(result.fault for result in found)
                yield f"| no traceback in {part} | {bad} in {_cases(found)} |"
        hangs = sum(result.outcome == "hang" for result in self.results)
        yield f"| no hang | {hangs} in {_cases(self.results)} cases |"
        # Those that no goal above is about.
        told = {"flips": "SILENT", "kills": "different"}
        faults = sum(
            result.fault and result.outcome not in ("hang", told.get(result.part))
            for result in self.results
            if result.part not in ("configs", "options")
        )
        minutes = (time.monotonic() - self.start) / 60
        yield f"| no other fault | {faults} |"
        yield f"| seed, minutes | {self.seed}, {minutes:.0f} |"


def _cases(results: list[Result]) -> int:
    return sum(result.counts.get("cases", 1) for result in results)


#: What differs between files of one kind.
_CHANGING = re.compile(r"(?<=images/\{chunk\}/)\d+|(?<=state/).*/|(?<=state/)encoder.*")


def _group(result: Result) -> str:
    if result.part == "flips":
        return f"`{_CHANGING.sub('*', result.kind.partition(' > ')[0])}`"
    if result.part in ("disks", "writers"):
        return result.kind.partition(":")[0]
    return "report" if result.kind.startswith("report_") else result.kind


def _in_turn(*streams: Iterator[Case]) -> Iterator[Case]:
    for group in zip(*streams, strict=True):
        yield from group


if __name__ == "__main__":
    sys.exit(main())

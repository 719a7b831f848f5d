"""Concurrency: the same job twice at once, two different ones on one output, two whole runs.

One may refuse with a line. What lies there at the end is what one of them makes alone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cases import LIMIT, Case, Ended, Result, begin, finish
from jobs import Job, Reference, contents
from kills import mlcd_run

#: Rule → a change of its section that changes its result.
OTHER = {
    "prepare": {"caption_column": "url"},
    "download": {"rows_per_tar": 7},
    "embed": {"image_size": 48},
    "cluster": {"seed": 5},
    "label": {"top": 3},
    "train": {"seed": 5},
    "text": {"seed": 5},
    "evaluate_features": {"pixel_side": 8},
    "evaluate": {"knn_k": [5]},
}


def cases(reference: Reference) -> Iterator[Case]:
    """Pairs of writers of each rule in turn, without end."""
    number = 0
    while True:
        for job in reference.one_of_each():
            yield _case(reference, f"same: {job.rule}", job, job, number)
            if job.rule in OTHER:
                yield _case(reference, f"other: {job.rule}", job, changed(job), number)
        number += 1


def runs(reference: Reference, made: dict[str, str]) -> Iterator[Case]:
    """Two `mlcd run` in one folder at once, without end."""
    number = 0
    while True:
        yield Case(
            "writers", "two whole runs", number,
            lambda f, r, number=number: _two_runs(reference, made, f, r, number),
        )  # fmt: skip
        number += 1


def changed(job: Job) -> Job:
    """Return the job with another value of its section."""
    argv = list(job.argv)
    place = argv.index("--config") + 1
    argv[place] = json.dumps({**json.loads(argv[place]), **OTHER[job.rule]})
    return Job(job.rule, argv, job.inputs, job.outputs)


def _case(reference: Reference, kind: str, one: Job, two: Job, number: int) -> Case:
    def run(folder: Path, rng: random.Random) -> Result:
        result = Result("writers", kind, number, "equal")
        return _pair(reference, one, two, folder, rng, result)

    return Case("writers", kind, number, run)


def _pair(
    reference: Reference, one: Job, two: Job, folder: Path, rng: random.Random, result: Result
) -> Result:
    expected = [one.made]
    if two is not one:
        place = reference.copy(folder / "alone")
        two.clear(place)
        ended = two.run(place, folder / "said")
        if ended.status != 0:
            result.outcome, result.told = "harness", ended.said[-3000:]
            return result
        expected.append(contents(place, two.places))
    place = reference.copy(folder / "place")
    one.clear(place)
    ends = _at_once(
        [lambda: one.work(place), lambda: two.work(place)],
        rng.random() * one.seconds,
        folder,
        one.limit,
    )
    return _judge(result, ends, contents(place, one.places), expected)


def _at_once(
    works: list[Callable[[], int]], pause: float, folder: Path, limit: float
) -> list[Ended]:
    started = []
    for index, work in enumerate(works):
        said = folder / f"said-{index}"
        started.append((begin(work, said), said, time.monotonic()))
        if index == 0:
            time.sleep(pause)
    return [finish(pid, said, start, 2 * limit) for pid, said, start in started]


def _judge(
    result: Result, ends: list[Ended], made: dict[str, str], expected: list[dict[str, str]]
) -> Result:
    outcomes = [ended.outcome() for ended in ends]
    told = "\n---\n".join(ended.said[-1500:] for ended in ends)
    worst = [one for one in outcomes if one not in ("done", "noticed")]
    if worst:
        result.outcome, result.told = worst[0], told
    elif "done" not in outcomes:
        result.outcome, result.told = "both refused", told
    elif made not in expected:
        result.outcome, result.told = "mixed", f"{sorted(made)}\n{told}"
    elif "noticed" in outcomes:
        result.outcome = "refused"
    return result


def _two_runs(
    reference: Reference, made: dict[str, str], folder: Path, rng: random.Random, number: int
) -> Result:
    place = reference.copy_project(folder / "place")
    result = Result("writers", "two whole runs", number, "equal")
    ends = _at_once([lambda: mlcd_run(place)] * 2, 5 * rng.random(), folder, 5 * LIMIT)
    return _judge(result, ends, contents(place, ["results"], whole=True), [made])

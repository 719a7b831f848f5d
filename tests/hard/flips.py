"""Flips: one bit of a file is turned, or its end is cut off; then each program that reads it runs.

It must say one line that names the file, or make the same bytes as from the whole file.
"""

from __future__ import annotations

import random
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import Case, Ended, Result
from jobs import Job, Reference, contents

#: Share of the cases in which the file is cut instead.
CUT = 0.25
#: Files that users give: changed, they are other data, and the result may be another.
GIVEN = ("few.tar", "lists/")
_CHUNK = re.compile(r"first-\d{5}")


@dataclass
class Reader:
    """A job that reads files of one kind, and what it makes of whole ones."""

    kind: str
    job: Job
    files: list[str]
    #: Its saved state is kept, because the files are part of it.
    resumes: bool = False


def readers(reference: Reference) -> list[Reader]:
    """Return every pair of a kind of file and a rule that reads it; a rule by one of its jobs."""
    found: dict[tuple[str, str], Reader] = {}
    for job in [*reference.jobs, *map(reference.known, _tools(reference))]:
        for name in _read_by(reference, job):
            kind = _CHUNK.sub("{chunk}", name.removeprefix("results/"))
            reader = found.setdefault((kind, job.rule), Reader(kind, job, []))
            if reader.job is job:
                reader.files.append(name)
    return list(found.values()) + _resumed(reference)


def cases(reference: Reference, rng: random.Random) -> Iterator[Case]:
    """Cases without end: each kind of file through each of its readers in turn."""
    known = readers(reference)
    rng.shuffle(known)
    number = 0
    while True:
        for reader in known:
            kind = f"{reader.kind} > {reader.job.rule}"
            yield Case(
                "flips", kind, number,
                lambda f, r, reader=reader, kind=kind, number=number: _flip(
                    reference, reader, f, r, number
                ),
            )  # fmt: skip
        number += 1


def _tools(reference: Reference) -> list[Job]:
    """The programs beside the stages that read what a run leaves."""
    images = reference.folder / "images"
    if not images.exists():
        images.mkdir()
        with tarfile.open(reference.folder / "few.tar") as tar:
            members = [one for one in tar if one.name.endswith(".jpg")][:6]
            for number, member in enumerate(members):
                data = tar.extractfile(member)
                assert data is not None
                # Not by `extract`: Debian's Python 3.11.2 has no filter for it yet.
                (images / f"{number}.jpg").write_bytes(data.read())
    found = []
    for name, folder in (("encode", "results/train"), ("encode_export", "results/export/timm")):
        if not (reference.folder / folder).is_dir():
            continue
        output = f"results/{name}.h5"
        argv = ["mlcd", "encode", str(images), "--model", folder, "--output", output,
                "--workers", "1"]  # fmt: skip
        inputs = [str(path.relative_to(reference.folder))
                  for path in sorted((reference.folder / folder).iterdir())
                  if path.suffix in (".safetensors", ".json")]  # fmt: skip
        found.append(Job(name, argv, inputs, [output]))
    return found


def _read_by(reference: Reference, job: Job) -> list[str]:
    """Return the files that a job reads: its inputs, and what belongs to them."""
    names = list(job.inputs)
    for name in job.inputs:
        path = reference.folder / name
        if path.name == "manifest.json":
            names += [str(path.parent.relative_to(reference.folder) / one.name)
                      for one in sorted(path.parent.iterdir())
                      if one.suffix in (".tar", ".parquet")]  # fmt: skip
    for word in job.argv:
        for inner in ("encoder.json", "encoder.safetensors", "text.json", "text.safetensors"):
            beside = reference.folder / word / inner
            if word.startswith("results/") and beside.is_file():
                names.append(f"{word}/{inner}")
    return [
        name
        for name in dict.fromkeys(names)
        if name not in job.outputs and (reference.folder / name).stat().st_size
    ]


def _resumed(reference: Reference) -> list[Reader]:
    """What an interrupted training reads again: checkpoints, indexes, records of its gang."""
    train = next((job for job in reference.jobs if job.rule == "train"), None)
    if train is None:
        return []
    folder = reference.folder / "results" / "train"
    kinds: dict[str, list[str]] = {}
    for path in sorted((folder / "state").rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.stat().st_size and path.suffix not in (".log", ".out"):
            kind = re.sub(r"encoder-[0-9a-f]+", "*", re.sub(r"job-[0-9a-f]+", "*", name))
            kinds.setdefault(kind, []).append(f"results/train/{name}")
    return [Reader(f"train/{kind}", train, names, True) for kind, names in kinds.items()]


def _flip(
    reference: Reference, reader: Reader, folder: Path, rng: random.Random, number: int
) -> Result:
    place = reference.copy(folder / "place")
    job = reader.job
    job.clear(place)
    if reader.resumes:
        source = reference.folder / "results" / "train" / "state"
        shutil.copytree(source, place / "results" / "train" / "state")
    name = rng.choice(reader.files)
    what = damage(place / name, rng)
    ended = job.run(place, folder / "said")
    made = contents(place, job.places) if ended.status == 0 else {}
    result = Result(
        "flips", f"{reader.kind} > {job.rule}", number, "same", told=f"{name}: {what}; "
    )
    return judge(result, ended, name, made == job.made)


def damage(path: Path, rng: random.Random) -> str:
    """Turn one bit of a file, or cut its end off; return what was done."""
    data = bytearray(path.read_bytes())
    if rng.random() < CUT:
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f"cut from {len(data)} to {size} bytes"
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8} of {len(data)} turned"


def judge(result: Result, ended: Ended, name: str, equal: bool) -> Result:
    """Judge what a reader did with a damaged file."""
    outcome = ended.outcome()
    if outcome == "done":
        given = name.startswith(GIVEN)
        outcome = "same" if equal else "other input" if given else "SILENT"
    elif outcome == "noticed":
        # The file itself, the folder whose parts belong together, or what was made of it.
        words = {Path(name).name, Path(name).parent.name + "/"}
        lines = [line for line in ended.said.splitlines() if line.strip()]
        named = any(word in line for word in words for line in lines)
        outcome = "noticed" if named else "unnamed"
    result.outcome = outcome
    if result.fault:
        result.told += ended.said[-3000:]
    return result

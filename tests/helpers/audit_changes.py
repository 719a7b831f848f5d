"""Single changes to a sealed run, each with the level of `mlcd audit` that promises to find it."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from mlcd import cli
from mlcd.commands.audit import lock as locks
from mlcd.data import hdf5, image_store
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_csv, read_record, write_csv, write_record

#: A file of each kind, below the results, as a pattern; and the level that finds a turned bit.
KINDS = {
    "urls/*.json": "chain",
    "urls/*.parquet": "bytes",
    "images/*/manifest.json": "chain",
    "images/*/*.tar": "bytes",
    "images/*/rows.parquet": "bytes",
    "embeddings/*.h5": "bytes",
    "clusters/centroids.h5": "bytes",
    "clusters/iterations.jsonl": "chain",
    "labels/*.h5": "bytes",
    "labels/summary.json": "chain",
    "text/embeddings/*.h5": "bytes",
    "text/captions/*.h5": "bytes",
    "text/text.json": "chain",
    "text/text.safetensors": "bytes",
    "evaluate/texts/*.h5": "bytes",
    "train/encoder.json": "chain",
    "train/encoder.safetensors": "bytes",
    "train/metrics.jsonl": "chain",
    "evaluate/features/*.h5": "bytes",
    "evaluate/*.json": "chain",
    "evaluate/summary.csv": "chain",
    "evaluate/summary.md": "chain",
    "export/*/check.json": "chain",
    "export/*/*.safetensors": "bytes",
    "export/*/README.md": "chain",
    "report/*.html": "chain",
    "audit/lock.json": "chain",
    "audit/code.json": "chain",
    "audit/system.json": "chain",
    "audit/rules.json": "chain",
    "audit/chain.html": "chain",
    "audit/bundle.json": "chain",
    "audit/bundle/*.*": "chain",
}


class Change(NamedTuple):
    """What is done, to which results, and the level that promises to find it."""

    name: str
    level: str
    apply: Callable[[Path], None]


def changes(results: Path, flips: int) -> Iterator[Change]:
    """Iterate over changes: `flips` turned bits for each kind of file, and each other change."""
    rng = random.Random(0)
    for pattern, level in KINDS.items():
        paths = sorted(path.relative_to(results) for path in results.glob(pattern))
        if not paths and "text" in pattern:  # a run without the text tower
            continue
        assert paths, pattern
        for number in range(flips):
            path = rng.choice(paths)
            place = rng.randrange(max(1, (results / path).stat().st_size))
            bit = 1 << rng.randrange(8)
            yield Change(
                f"bit {number} of {path}", level,
                lambda at, path=path, place=place, bit=bit: flip(at / path, place, bit),
            )  # fmt: skip
        path = rng.choice(paths)
        yield Change(f"cut {path}", "chain", lambda at, path=path: cut(at / path))
        yield Change(f"removed {path}", "chain", lambda at, path=path: (at / path).unlink())
        if len(paths) > 1 and "audit" not in pattern:
            yield Change(
                f"swapped {pattern}", level,
                lambda at, paths=paths: swap(at / paths[0], at / paths[-1]),
            )  # fmt: skip
    for place in ("labels/more.h5", "images/more-00000/00000.tar", "train/notes.txt", "more.json"):
        yield Change(f"added {place}", "chain", lambda at, place=place: add(at / place))
    yield Change("a score edited with its checksum", "chain", edited_score)
    yield Change("the lock edited with its checksum", "chain", edited_lock)
    yield Change(
        "audit/lock.json of nothing", "chain", lambda at: write_record(at / LOCK, {"format": 1})
    )
    yield Change("a tar replaced with its manifest", "chain", replaced_tar)
    yield Change("a card of another run, and the lock fits it", "chain", other_card)
    yield Change("the card of other weights", "chain", card_of_others)
    yield Change("an edited config", "chain", edited_config)
    yield Change("labels under the name of another chunk", "chain", renamed_labels)
    yield Change("the lock of another code, and its root", "identity", other_code)
    for name, forge in FORGERIES.items():
        yield Change(f"forged and sealed again: {name}", "numbers", forge)


LOCK = Path("audit") / "lock.json"
#: How a command ended that met a defect of ours.
CRASHED = 70


def flip(path: Path, place: int, bit: int) -> None:
    """Turn one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def swap(first: Path, second: Path) -> None:
    """Exchange two files."""
    old = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(old)


def add(path: Path) -> None:
    """Write a file that no stage has written."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"more")


def edited_score(results: Path) -> None:
    """Raise the first score of the summary, and write the table anew."""
    path = results / "evaluate" / "summary.csv"
    rows = read_csv(path, "evaluate")
    row = next(row for row in rows if row["model"] == "trained")
    row["value"] = "0.99"
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def edited_lock(results: Path) -> None:
    """Let the lock tell of another hash, and write it anew."""
    lock = read_record(results / LOCK, "audit")
    path = next(path for path in lock["files"] if path.startswith("labels/"))
    lock["files"][path]["hash"] = "0" * 64
    write_record(results / LOCK, lock)


def other_card(results: Path) -> None:
    """Let a model card name another run, and the lock hold its hash: no root hash is of cards."""
    lock = read_record(results / LOCK, "audit")
    path = next(path for path in lock["files"] if path.endswith("README.md"))
    card = results / path
    card.write_text(card.read_text(encoding="utf-8").replace(lock["root"], "ab" * 32))
    lock["files"][path]["hash"] = sha256_file(card)
    write_record(results / LOCK, lock)


def card_of_others(results: Path) -> None:
    """Let a model card speak of other weights."""
    path = sorted(results.glob("export/*/README.md"))[0]
    weights = read_record(results / "train" / "encoder.json", "train")["sha256"]
    text = path.read_text()
    assert weights in text
    path.write_text(text.replace(weights, "0" * 64))


def edited_config(results: Path) -> None:
    """Let the resolved config tell of another seed."""
    path = results / "report" / "config.yaml"
    text = path.read_text()
    assert "seed: 0" in text
    path.write_text(text.replace("seed: 0", "seed: 1"))


def renamed_labels(results: Path) -> None:
    """Put the labels of a chunk in the place of another's."""
    paths = sorted(results.glob("labels/*.h5"))
    shutil.copy(paths[0], paths[-1])


def other_code(results: Path) -> None:
    """Let the lock tell of other code, with the root hash that it then has."""
    lock = read_record(results / LOCK, "audit")
    lock["stages"]["train"]["code"] = "0" * 16
    lock["root"] = locks.root_of(lock)
    write_record(results / LOCK, lock)


def replaced_tar(results: Path) -> None:
    """Write another tar in the place of one, and a manifest that fits it."""
    path = sorted(results.glob("images/*/manifest.json"))[0]
    manifest = read_record(path, "download")
    tar = path.parent / manifest["tars"][0]["name"]
    flip(tar, 600, 1)
    manifest["tars"][0]["sha256"] = sha256_file(tar)
    manifest["fingerprint"] = image_store.fingerprint(manifest)
    write_record(path, manifest)


def sealed_again(forge: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change after which the run is sealed anew, so that no hash can find it."""

    def change(results: Path) -> None:
        lock = read_record(results / LOCK, "audit")
        forge(results)
        words = ["--stages", json.dumps(lock["stages"]), "--inputs"]
        words += [entry["path"] for entry in lock["inputs"] if "path" in entry]
        words.append("--datasets")
        words += [f"{entry['name']}={entry['hash']}" for entry in lock["inputs"]
                  if "bytes" not in entry]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(["audit", "seal", str(results), *words]) == 0
            # Of the old seal it would give the forger away.
            assert cli.main(["audit", "bundle", str(results)]) == 0

    return change


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> str:
    """Change the datasets of an HDF5 file of ours and write it with new hashes; return the new."""
    with h5py.File(path) as file:
        data = {name: file[name][()] for name in file}
        about = {name: value.item() if isinstance(value, np.generic) else value
                 for name, value in file.attrs.items()}  # fmt: skip
    change(data)
    kind = about.pop("kind")
    about = {name: about[name] for name in about if name not in ("content", "fingerprint")}
    path.unlink()
    hdf5.write(path, kind, data, about)
    return hdf5.fingerprint(path)


def _labels(results: Path) -> None:
    first = sorted(results.glob("labels/*.h5"))[0]
    old = hdf5.fingerprint(first)

    with h5py.File(first) as file:
        k = int(file.attrs["num_classes"])

    def change(data: dict[str, np.ndarray]) -> None:
        data["label"][:, 0] = (data["label"][:, 0] + 1) % k

    _renamed(results, {old: rewrite(first, change)})


def _objective(results: Path) -> None:
    path = results / "clusters" / "centroids.h5"
    old = hdf5.fingerprint(path)
    new = rewrite(path, lambda data: data.update(objective=data["objective"] + 0.2))
    found = {old: new}
    for labels in sorted(results.glob("labels/*.h5")):
        before = hdf5.fingerprint(labels)
        found[before] = _attributes(labels, centroids=new)
    _renamed(results, found)


def _embeddings(results: Path) -> None:
    """Give each image of a chunk the embedding of another, all the way up to the weights."""
    first = sorted(results.glob("embeddings/*.h5"))[0]
    old = hdf5.fingerprint(first)
    new = rewrite(first, lambda data: data.update(embedding=np.roll(data["embedding"], 1, 0)))
    centroids = results / "clusters" / "centroids.h5"
    before = hdf5.fingerprint(centroids)
    said = str(hdf5.attributes(centroids)[0]["embeddings"])
    center = _attributes(centroids, embeddings=said.replace(old, new))
    found = {old: new, before: center}
    for labels in sorted(results.glob("labels/*.h5")):
        before = hdf5.fingerprint(labels)
        made = {"embeddings": new} if labels.stem == first.stem else {}
        found[before] = _attributes(labels, centroids=center, **made)
    _renamed(results, found)


def _attributes(path: Path, **values: str) -> str:
    with h5py.File(path) as file:
        data = {key: file[key][()] for key in file}
        about = {key: one.item() if isinstance(one, np.generic) else one
                 for key, one in file.attrs.items()}  # fmt: skip
    kind = about.pop("kind")
    about = {key: about[key] for key in about if key not in ("content", "fingerprint")}
    path.unlink()
    hdf5.write(path, kind, data, {**about, **values})
    return hdf5.fingerprint(path)


def _renamed(results: Path, new: dict[str, str]) -> None:
    """Write the new fingerprints into all records that name the old."""
    for path in ("labels/summary.json", "train/encoder.json"):
        record = read_record(results / path, "its stage")
        text = json.dumps(record)
        for old, fresh in new.items():
            text = text.replace(old, fresh)
        write_record(results / path, json.loads(text))


def _scores(results: Path) -> None:
    path = results / "evaluate" / "trained.json"
    record = read_record(path, "evaluate")
    for found in record["datasets"].values():
        for metric in found["scores"]:
            found["scores"][metric] = 0.99
    write_record(path, record)
    rows = read_csv(results / "evaluate" / "summary.csv", "evaluate")
    for row in rows:
        row["value"] = "0.99" if row["model"] == "trained" else row["value"]
    table = [list(row.values()) for row in rows]
    write_csv(results / "evaluate" / "summary.csv", list(rows[0]), table)


def _export(results: Path) -> None:
    from safetensors.numpy import load_file, save_file

    check = sorted(results.glob("export/*/check.json"))[0]
    record = read_record(check, "export")
    name = next(name for name in record["files"] if name.endswith(".safetensors"))
    weights = load_file(check.parent / name)
    other = {key: weight * 1.5 if weight.dtype.kind == "f" else weight
             for key, weight in weights.items()}  # fmt: skip
    save_file(other, check.parent / name)
    record["files"][name] = sha256_file(check.parent / name)
    record["bytes"][name] = (check.parent / name).stat().st_size
    write_record(check, record)


FORGERIES = {
    "embeddings": sealed_again(_embeddings),
    "labels": sealed_again(_labels),
    "objective": sealed_again(_objective),
    "scores": sealed_again(_scores),
    "a score of the summary": sealed_again(edited_score),
    "an export": sealed_again(_export),
}


class Copy:
    """A copy of a run's results that is restored after each change."""

    def __init__(self, results: Path, folder: Path) -> None:
        self._from = results
        self.folder = folder / "results"
        shutil.copytree(results, self.folder)
        self.identity = str(read_record(self.folder / LOCK, "audit")["root"])

    def restore(self) -> None:
        """Make the copy as the results are."""
        wanted = {path.relative_to(self._from) for path in self._from.rglob("*") if path.is_file()}
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            if path.relative_to(self.folder) not in wanted:
                path.unlink()
        for name in wanted:
            old, new = self._from / name, self.folder / name
            if not new.is_file() or old.stat().st_mtime_ns != new.stat().st_mtime_ns:
                shutil.copy2(old, new)


def audit(*words: str) -> tuple[int, str]:
    """Run `mlcd audit`; return how it ended (:data:`CRASHED` for a defect), and what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            status = cli.main(["audit", *words])
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    # 1 is said by SystemExit; what main returns itself is that it has logged a traceback.
    return CRASHED if status == 1 else status, said.getvalue()


def found(copy: Copy, change: Change) -> bool:
    """Apply a change, tell whether its level finds it and no lower one crashes, and restore it."""
    try:
        change.apply(copy.folder)
        options = {
            "chain": [], "bytes": ["--bytes"], "numbers": ["--numbers"],
            "identity": ["--identity", copy.identity],
        }[change.level]  # fmt: skip
        status, said = audit("verify", str(copy.folder), *options)
        # A damaged lock cannot tell anything, and says so.
        return status == 1 or (status == 2 and "lock.json" in change.name + said)
    finally:
        copy.restore()

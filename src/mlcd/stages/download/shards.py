"""A pass on disk: its rows cut into shards, what img2dataset wrote for each, and its proof.

    pass-01/plan.json             {"rows", "shards"}; written last, so the rows of a pass are fixed
    pass-01/input/00000.arrow     row int64, url string (as requested), expected string (SHA-256)
    pass-01/shards/00000.tar …    what img2dataset writes
    pass-01/proof/00000.parquet   one line per row, written once the tar has been read to its end

A shard counts when its proof exists. Reasons and places come from the proofs alone.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.data.tars import content
from mlcd.stages.download.reasons import classify
from mlcd.stages.download.url_list import UrlList, requestable
from mlcd.utils.files import atomic_path
from mlcd.utils.records import read_record, write_record

_INPUT = pa.schema([("row", pa.int64()), ("url", pa.string()), ("expected", pa.string())])
_PROOF = pa.schema(
    [
        ("row", pa.int64()), ("reason", pa.string()), ("offset", pa.int64()), ("size", pa.int64()),
        ("sha256", pa.binary(32)), ("width", pa.int32()), ("height", pa.int32()),
    ]
)  # fmt: skip
#: Rows of one shard at most, img2dataset's own default, and at least: a shard waits for its
#: slowest transfer, so small ones are slow; what a kill loses is one shard per process.
_MOST, _LEAST = 10_000, 256


class DamagedShard(Exception):
    """A tar of img2dataset that is not whole, or not what its table says."""

    def __init__(self, folder: Path, index: int, detail: str) -> None:
        super().__init__(f"{_tar(folder, index)}: {detail}")
        self.folder, self.index = folder, index


def _tar(folder: Path, index: int) -> Path:
    return folder / "shards" / f"{index:05d}.tar"


def input_path(folder: Path, index: int) -> Path:
    """Return the list of rows of shard `index` of the pass in `folder`."""
    return folder / "input" / f"{index:05d}.arrow"


def proof_path(folder: Path, index: int) -> Path:
    """Return the proof of shard `index` of the pass in `folder`."""
    return folder / "proof" / f"{index:05d}.parquet"


def discard(folder: Path, index: int) -> None:
    """Forget shard `index`, so that it is fetched again; its proof goes first."""
    proof_path(folder, index).unlink(missing_ok=True)
    for suffix in (".tar", ".parquet", "_stats.json", ".arrow"):
        (folder / "shards" / f"{index:05d}{suffix}").unlink(missing_ok=True)


def plan(folder: Path, source: UrlList, wanted: np.ndarray, processes: int) -> None:
    """Cut the rows where `wanted` (bool [n]) into shards under `folder`, once and for all."""
    rows = int(wanted.sum())
    size = min(_MOST, max(_LEAST, -(-rows // (2 * processes))))
    for name in ("input", "shards", "proof"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pending: list[tuple[int, str, str]] = []
    shards = 0
    for batch in source.batches(65_536):
        for place in np.flatnonzero(wanted[batch.start : batch.start + len(batch.urls)]):
            url = requestable(batch.urls[place])
            pending.append((batch.start + int(place), url or "", batch.hashes[place]))
            if len(pending) == size:
                _write_input(input_path(folder, shards), pending)
                pending, shards = [], shards + 1
    if pending:
        _write_input(input_path(folder, shards), pending)
        shards += 1
    write_record(folder / "plan.json", {"rows": rows, "shards": shards})


def _write_input(path: Path, rows: list[tuple[int, str, str]]) -> None:
    lines = [dict(zip(_INPUT.names, row, strict=True)) for row in rows]
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, _INPUT) as writer,
    ):
        writer.write_table(pa.Table.from_pylist(lines, _INPUT))


def is_planned(folder: Path) -> bool:
    """True if the rows of the pass in `folder` are fixed."""
    return (folder / "plan.json").exists()


def planned_rows(folder: Path) -> int:
    """Return the number of rows of a planned pass."""
    rows: int = read_record(folder / "plan.json", "download")["rows"]
    return rows


def unproven(folder: Path) -> list[int]:
    """Return the shards of a planned pass that are still to be fetched, in order."""
    count: int = read_record(folder / "plan.json", "download")["shards"]
    return [index for index in range(count) if not proof_path(folder, index).exists()]


def proofs(folder: Path) -> Iterator[tuple[int, pa.Table]]:
    """Iterate over the proofs of a pass: shard and table, in order."""
    for path in sorted((folder / "proof").glob("[0-9]*.parquet")):
        yield int(path.stem), pq.read_table(path)


def prove(folder: Path, index: int, *, as_served: bool) -> None:
    """Read a fetched shard to its end and write its proof.

    A row's reason is img2dataset's message in one word, or ``hash_mismatch`` if the list expects
    another SHA-256 of the served bytes. `as_served` says that members are the served bytes: their
    SHA-256 must then be the one img2dataset took on arrival. Raises :class:`DamagedShard` if the
    tar is cut short or its members are not exactly the rows that img2dataset counts as arrived.
    """
    with pa.memory_map(str(input_path(folder, index))) as file:
        asked = pa.ipc.open_file(file).read_all()
    fetched = {
        line["row"]: line
        for line in pq.read_table(folder / "shards" / f"{index:05d}.parquet").to_pylist()
    }
    members = _members(folder, index)
    lines = []
    for row, expected in zip(asked["row"].to_pylist(), asked["expected"].to_pylist(), strict=True):
        line = fetched.get(row)
        # img2dataset drops a row from its table when its own code raises.
        failed = {"row": row, "reason": "other", "offset": -1, "size": 0, "sha256": bytes(32)}
        failed |= {"width": 0, "height": 0}
        if line is None or line["status"] != "success":
            if line is not None:
                failed["reason"] = classify(line["error_message"] or "")
            lines.append(failed)
            continue
        if line["key"] not in members:
            raise DamagedShard(folder, index, f"row {row} is counted as arrived and is not there")
        offset, size, digest = members.pop(line["key"])
        if as_served and digest.hex() != line["sha256"]:
            raise DamagedShard(folder, index, f"row {row} is not the bytes that arrived")
        if expected and expected.strip().lower() != line["sha256"]:
            lines.append(failed | {"reason": "hash_mismatch"})
            continue
        size_of = {"width": line["width"], "height": line["height"]}
        place = {"offset": offset, "size": size, "sha256": digest}
        lines.append({"row": row, "reason": ""} | place | size_of)
    if members:
        raise DamagedShard(folder, index, f"{len(members)} images that its table does not count")
    with atomic_path(proof_path(folder, index)) as temporary:
        pq.write_table(pa.Table.from_pylist(lines, _PROOF), temporary)


def _members(folder: Path, index: int) -> dict[str, tuple[int, int, bytes]]:
    """Return key → (offset, size, SHA-256) of all images of a tar, read to its end."""
    path = _tar(folder, index)
    found = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                key, _, extension = member.name.rpartition(".")
                if extension != "jpg":
                    continue
                data = content(tar, member)
                found[key] = (member.offset_data, member.size, hashlib.sha256(data).digest())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedShard(folder, index, str(error)) from None
    # A tar ends in two blocks of zeros; without them, something after the last member is lost.
    if path.stat().st_size < end + 1024:
        raise DamagedShard(folder, index, "cut short after its last member")
    return found


def read_image(folder: Path, index: int, offset: int, size: int, sha256: bytes) -> bytes:
    """Return a proven image. Raises :class:`DamagedShard` if its bytes have changed since."""
    try:
        with _tar(folder, index).open("rb") as handle:
            handle.seek(offset)
            data = handle.read(size)
    except OSError as error:
        raise DamagedShard(folder, index, str(error)) from None
    if hashlib.sha256(data).digest() != sha256:
        raise DamagedShard(folder, index, f"the bytes at {offset} have changed since they arrived")
    return data

"""Proofs of shards: reasons, places, tars that are not whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.builders import add_member, jpeg
from helpers.url_lists import write_list
from mlcd.stages.download import shards
from mlcd.stages.download.url_list import UrlList


class Shard:
    """A pass of four rows as img2dataset leaves it: rows 10, 12, 15 arrived, 11 did not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        urls = [f"http://h/{row}" for row in range(16)]
        source = UrlList(write_list(folder / "list.parquet", url=urls))
        wanted = np.isin(np.arange(16), [10, 11, 12, 15])
        shards.plan(folder, source, wanted, processes=1)
        self.images = {row: jpeg(row) for row in (10, 12, 15)}
        lines = [self._line(row) for row in (12, 10, 11, 15)]
        pq.write_table(pa.Table.from_pylist(lines), folder / "shards/00000.parquet")
        self.tar = folder / "shards/00000.tar"
        self.write_tar([15, 10, 12])

    def _line(self, row: int) -> dict[str, object]:
        import hashlib

        arrived = row in self.images
        return {
            "row": row, "key": f"{row}", "status": "success" if arrived else "failed_to_download",
            "error_message": None if arrived else "HTTP Error 404: Not Found",
            "width": 48, "height": 48,
            "sha256": hashlib.sha256(self.images[row]).hexdigest() if arrived else None,
        }  # fmt: skip

    def write_tar(self, rows: list[int]) -> None:
        with tarfile.open(self.tar, "w") as tar:
            for row in rows:
                add_member(tar, f"{row}.jpg", self.images[row])
                add_member(tar, f"{row}.json", b"{}")

    def damage(self) -> str:
        with pytest.raises(shards.DamagedShard) as error:
            shards.prove(self.folder, 0, as_served=True)
        assert shards.unproven(self.folder) == [0]
        return str(error.value)


def test_proof_holds_reasons_and_places(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shards.prove(tmp_path, 0, as_served=True)
    assert shards.unproven(tmp_path) == []
    [(index, proof)] = shards.proofs(tmp_path)
    assert index == 0
    assert proof["row"].to_pylist() == [10, 11, 12, 15]
    assert proof["reason"].to_pylist() == ["", "not_found", "", ""]
    for line in proof.to_pylist():
        if line["reason"] == "":
            place = (line["offset"], line["size"], line["sha256"])
            assert shards.read_image(tmp_path, 0, *place) == shard.images[line["row"]]
    with pytest.raises(shards.DamagedShard):
        shards.read_image(tmp_path, 0, line["offset"] + 1, line["size"], line["sha256"])


def test_tars_that_are_not_whole_are_found(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    whole = shard.tar.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in (0, 100, 700, len(jpeg(15)) + 600, end - 600, end + 1):
        shard.tar.write_bytes(whole[:length])
        assert "00000.tar" in shard.damage()
    shard.tar.write_bytes(whole[:700] + b"\x55" + whole[701:])
    assert "not the bytes that arrived" in shard.damage()
    shard.write_tar([10, 12])
    assert "row 15 is counted as arrived" in shard.damage()
    shard.images[11] = jpeg(11)
    shard.write_tar([10, 11, 12, 15])
    assert "does not count" in shard.damage()
    shard.write_tar([10, 12, 15])
    shards.prove(tmp_path, 0, as_served=True)

"""The report's page of the download."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.report_stores import cells
from mlcd.config import Report
from mlcd.data.image_store import fingerprint
from mlcd.stages.report import download
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record


def manifests(folder: Path, arrived: list[int], rows: int = 20) -> list[str]:
    """Write manifests without tars: the download page reads nothing else."""
    paths = []
    for index, success in enumerate(arrived):
        counts = {"success": success, "not_found": (rows - success) // 2}
        counts["timeout"] = rows - sum(counts.values())
        path = folder / f"c-{index:05d}" / "manifest.json"
        tars = [{"name": "00000.tar", "sha256": "", "bytes": 1000, "images": success}]
        values = {"format": 1, "chunk": path.parent.name, "rows": rows, "counts": counts}
        manifest = {**values, "tars": tars}
        write_record(path, {**manifest, "fingerprint": fingerprint(manifest)})
        paths.append(str(path))
    return paths


def test_download_totals_are_the_sums_over_chunks(tmp_path):
    drawing = download.draw(Report(), manifests(tmp_path, [20, 10, 6]))
    assert drawing.title == "36 of 60 images arrived (60.0%)"
    rows = cells(drawing.body)
    assert ["success", "36", "60.00%"] in rows
    assert ["not_found", "12", "20.00%"] in rows and ["timeout", "12", "20.00%"] in rows
    assert ["all", "60", "36", "60.00%", "3.0 kB"] in rows


def test_many_chunks_show_the_worst_and_all_in_the_totals(tmp_path):
    arrived = [20] * 100
    arrived[77], arrived[5] = 1, 3
    drawing = download.draw(Report(), manifests(tmp_path, arrived))
    rows = cells(drawing.body)
    chunks = [row[0] for row in rows if row[0].startswith("c-")]
    assert chunks[:2] == ["c-00077", "c-00005"] and len(chunks) == 40
    assert rows[-1][:3] == ["all", "2,000", "1,964"]
    assert len(drawing.html()) < 300_000


def test_a_foreign_manifest_is_refused(tmp_path):
    write_record(tmp_path / "manifest.json", {"rows": 3})
    with pytest.raises(UserError, match=r"manifest\.json: of another version"):
        download.draw(Report(), [str(tmp_path / "manifest.json")])

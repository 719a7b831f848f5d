"""Parts of the bundle for readers of data: Croissant of the images, and the two checklists."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from helpers.exported_runs import seal, write_run
from helpers.report_stores import CHUNKS, HOSTILE, N, Stores
from mlcd.commands.audit import lock
from mlcd.commands.audit.bundle import PARTS, checklist, croissant
from mlcd.commands.audit.bundle.run import Lacking, Run
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record, write_record

STAGES = {
    "train": {"section": {"lr": 0.1, "seed": 3, "loss": "mlcd"}, "code": "b" * 16},
    "embed": {"section": {"model": "clip", "pretrained": f"`|\n{HOSTILE}"}, "code": "c" * 16},
    "download": {"section": {"respect_opt_out": True}, "code": "d" * 16},
    "export": {"section": {"license": "cc-by-4.0"}, "code": "e" * 16},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "results"
    Stores(folder)
    # Pages and tables that these stores write by hand.
    for name in (".snakemake", "ablate", "report"):
        (folder / name).rename(folder.parent / name)
    for name in ("train", "evaluate"):
        shutil.rmtree(folder / name)
    write_run(folder)
    seal(folder, STAGES)
    return folder


@pytest.fixture
def folder(results) -> Path:
    """The bundle's folder, which no other test has written into."""
    place = results / "audit" / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def run_of(results: Path) -> Run:
    system = read_record(results / lock.SYSTEM, "audit")
    return Run(results, read_record(results / lock.LOCK, "audit"), system)


def rows(text: str) -> dict[str, str]:
    """Return question → answer of all tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert all(len(pair) == 2 for pair in cells)
    return dict(cells)


def test_both_are_parts_of_the_bundle():
    assert {"croissant", "checklist"} <= set(PARTS)
    assert (croissant.NAME, checklist.NAME) == ("croissant", "checklist")


def test_loaders_of_croissant_find_the_rows_and_the_files(results, folder):
    mlc = pytest.importorskip("mlcroissant")
    (path,) = croissant.write(run_of(results), folder)
    data = mlc.Dataset(path)
    assert data.metadata.ctx.issues.errors == set()
    table = ImageStore(results / "images" / CHUNKS[0]).table()
    found = list(data.records(CHUNKS[0]))
    assert len(found) == N
    for name in ("key", "url", "caption"):
        values = [row[f"{CHUNKS[0]}/{name}"].decode() for row in found]
        assert values == table[name].tolist()
    assert HOSTILE in table["caption"].tolist()
    for name in ("width", "height"):
        assert [row[f"{CHUNKS[0]}/{name}"] for row in found] == table[name].tolist()
    files = {one.content_url: one.sha256 for one in data.metadata.distribution}
    for url, digest in files.items():
        assert sha256_file(folder / url) == digest
    kinds = {Path(url).suffix for url in files}
    assert kinds == {".tar", ".parquet", ".h5"} and len(files) == 6 + 3 + 3


def test_images_of_a_chunk_that_the_run_no_longer_has_are_not_described(results, tmp_path):
    pytest.importorskip("mlcroissant")
    copy = shutil.copytree(results, tmp_path / "results")
    kept = [Labels(copy / "labels" / f"{name}.h5").fingerprint for name in CHUNKS[:2]]
    write_record(copy / "labels" / "summary.json", {"made_from": {"labels": kept}})
    run = run_of(copy)
    assert lock.labels_of(copy, run.lock) == [f"labels/{name}.h5" for name in CHUNKS[:2]]
    (path,) = croissant.write(run, copy / "audit" / "bundle")
    value = json.loads(path.read_text())
    assert {one["name"] for one in value["recordSet"]} == set(CHUNKS[:2])
    places = [one["contentUrl"] for one in value["distribution"]]
    assert len(places) == 4 + 2 + 2 and not any(CHUNKS[2] in place for place in places)
    # A summary of other labels tells nothing of these.
    write_record(copy / "labels" / "summary.json", {"made_from": {"labels": [*kept, "0" * 64]}})
    assert len(lock.labels_of(copy, run.lock)) == 3


def test_equal_runs_give_equal_bytes_and_no_place_of_this_machine(results, folder, tmp_path):
    pytest.importorskip("mlcroissant")
    copy = shutil.copytree(results, tmp_path / "results")
    for part in (croissant, checklist):
        (first,) = part.write(run_of(results), folder)
        (second,) = part.write(run_of(copy), copy / "audit" / "bundle")
        assert first.read_bytes() == second.read_bytes()
        assert str(results).encode() not in first.read_bytes()


def test_of_many_tars_the_manifests_that_name_them_are_listed(results, folder, monkeypatch):
    pytest.importorskip("mlcroissant")
    monkeypatch.setattr(croissant, "_TARS", 5)
    monkeypatch.setattr(croissant, "_CHUNKS", 1)
    (path,) = croissant.write(run_of(results), folder)
    value = json.loads(path.read_text())
    files = {one["contentUrl"]: one["sha256"] for one in value["distribution"]}
    manifest = f"images/{CHUNKS[2]}/manifest.json"
    assert files[f"../../{manifest}"] == sha256_file(results / manifest)
    assert not any(url.endswith(".tar") for url in files)
    assert len(value["recordSet"]) == 1 and "first 1 chunks" in value["description"]


def test_a_run_without_the_package_says_so(results, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Lacking, match="mlcroissant"):
        croissant.write(run_of(results), folder)
    assert list(folder.iterdir()) == []


def test_a_run_without_images_has_no_data_set(tmp_path):
    pytest.importorskip("mlcroissant")
    write_run(tmp_path / "results")
    seal(tmp_path / "results")
    assert croissant.write(run_of(tmp_path / "results"), tmp_path) == []


def test_checklists_say_what_the_run_s_files_say_and_nothing_else(results, folder):
    (path,) = checklist.write(run_of(results), folder)
    found = rows(path.read_text(encoding="utf-8"))
    assert len([name for name in found if name[0].isdigit()]) == 16
    root = read_record(results / lock.LOCK, "audit")["root"]
    assert f"`{root}`" in found["4. Reproducibility of the results"]
    assert "seeds: train `3`" in found["4. Reproducibility of the results"]
    assert "loss `mlcd`, lr `0.1`, seed `3`" in found["6. Experimental setting and details"]
    assert "scores of one training, with seed `0`" in found["7. Statistical significance"]
    assert "respect_opt_out `true`" in found["11. Safeguards"]
    assert "exports for `timm`" in found["13. New assets"]
    assert "license of the weights: `cc-by-4.0`" in found["13. New assets"]
    for question in ("1. Claims", "9. Code of ethics", "15. Approval by a review board"):
        assert found[question] == "not recorded"
    assert "not recorded" in found["Results reproduced"]


def test_what_is_not_there_is_not_recorded(tmp_path):
    run = Run(tmp_path, {"root": "a" * 64, "inputs": [], "stages": {}, "files": {}}, {})
    (path,) = checklist.write(run, tmp_path)
    found = rows(path.read_text())
    for name in ("6. Experimental setting and details", "12. Licenses for existing assets",
                 "5. Open access to data and code", "8. Compute resources",
                 "11. Safeguards"):  # fmt: skip
        assert "not recorded" in found[name], name
    assert found["7. Statistical significance"] == "not recorded"


def test_words_of_strangers_break_neither_table_nor_page(results, folder):
    (path,) = checklist.write(run_of(results), folder)
    text = path.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "frozen encoder" in line)
    # As code, in one cell.
    assert "pretrained `'\\| <script>alert('x')</script>" in line
    assert line.count("`") % 2 == 0

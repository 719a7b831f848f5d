"""Other people's files are refused by name before any work, and stay as they are."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from helpers.builders import centroids_file, embeddings_file, image_store, unit_vectors
from helpers.url_lists import urls
from mlcd.cli import main
from mlcd.models import trainable
from mlcd.stages.report.page import Drawing
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.ownership import claim, claimed_folder, is_ours


def foreign(path: Path) -> bytes:
    """Write a file of someone else's, of the format that its name says; return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["embedding"] = np.ones((3, 4), np.float32)
    elif path.suffix == ".parquet":
        pd.DataFrame({"a": [1, 2]}).to_parquet(path)
    elif path.suffix == ".safetensors":
        save_file({"a": torch.zeros(2)}, path)
    elif path.suffix in (".json", ".jsonl"):
        path.write_text('{"name": "mine", "format": 1}\n')
    else:
        path.write_bytes(b"mine, all mine\n" * 10)
    return path.read_bytes()


@pytest.mark.parametrize(
    "suffix",
    [
        "h5", "parquet", "safetensors", "json", "jsonl", "csv", "html", "svg", "png", "pdf", "md",
        "txt", "tar", "",
    ],
)  # fmt: skip
def test_foreign_files_are_refused_and_empty_ones_are_free(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}".rstrip(".")
    claim(path)
    path.touch()
    claim(path)
    before = foreign(path)
    with pytest.raises(UserError, match=r"a.*: is there and was not written by mlcd"):
        claim(path)
    path.write_bytes(b"\0\1 damaged")
    with pytest.raises(UserError, match="not written by mlcd"):
        claim(path)
    assert before


def test_ours_are_known_wherever_they_are_copied(tmp_path: Path) -> None:
    image_store(tmp_path / "a", 3)
    trainable.save(trainable.build("mlcd_vit_tiny_patch8", 16, 32), tmp_path, {})
    embeddings_file(tmp_path / "e.h5", unit_vectors(4, 8))
    chart = Figure()
    for kind in ("svg", "png", "pdf"):
        (tmp_path / f"c.{kind}").write_bytes(charts.rendered(chart, kind))
    (tmp_path / "p.html").write_text(Drawing("a", "b", "c").html())
    for name in (
        "encoder.safetensors",
        "encoder.json",
        "e.h5",
        "c.svg",
        "c.png",
        "c.pdf",
        "p.html",
    ):
        assert is_ours(tmp_path / name), name
    assert is_ours(tmp_path / "a/manifest.json")


@pytest.mark.parametrize("name", ["00000.tar", "manifest.json", "rows.parquet", "00007.tar"])
def test_download_refuses_a_folder_of_others(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a.jpg"] * 3}), lists)
    before = foreign(tmp_path / "out" / name)
    notes = foreign(tmp_path / "out/.notes.tmp")
    arguments = ["download", "--urls", lists, "--output", tmp_path / "out", "--min-success", "0"]
    assert main([*map(str, arguments), "--passes", "1"]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_bytes() == before
    assert not (tmp_path / "state").exists()
    # Without it the stage writes, and leaves what is not its own.
    (tmp_path / "out" / name).unlink()
    assert main([*map(str, arguments), "--passes", "1"]) == 0
    foreign(tmp_path / "out/00099.tar")
    (tmp_path / "out/manifest.json").unlink()  # as Snakemake does before each attempt
    assert main([*map(str, arguments), "--passes", "1", "--rows-per-tar", "2"]) == 0
    assert (tmp_path / "out/.notes.tmp").read_bytes() == notes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".notes.tmp", "00000.tar", "00001.tar", "00099.tar", "manifest.json", "rows.parquet",
    ]  # fmt: skip
    assert main([*map(str, arguments), "--passes", "1", "--rows-per-tar", "3"]) == 0
    assert not (tmp_path / "out/00001.tar").exists()
    assert (tmp_path / "out/00099.tar").exists()


def test_a_tar_of_ours_is_known_by_its_members(tmp_path: Path) -> None:
    image_store(tmp_path / "a-00000", 2)
    assert is_ours(tmp_path / "a-00000/00000.tar")
    witnesses = ("manifest.json", "rows.parquet")
    for name in witnesses:  # as Snakemake does before each attempt: tars are left alone
        (tmp_path / "a-00000" / name).unlink()
    with claimed_folder(tmp_path / "a-00000", witnesses, r".*\.tar"):
        pass
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name in ("000000000.jpg", "000000000.json"):
            foreign(tmp_path / name)
            tar.add(tmp_path / name, name)
    assert not is_ours(tmp_path / "00000.tar")


@pytest.mark.parametrize("text", ["5", "[{}]", "[" * 60_000])
def test_json_of_any_shape_is_of_others(tmp_path: Path, text: str) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("000000000.jpg", b"x"), ("000000000.json", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "a.json").write_text(text)
    assert not is_ours(path) and not is_ours(tmp_path / "a.json")


def test_what_a_killed_run_left_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    with pytest.raises(KeyboardInterrupt), claimed_folder(folder, ("check.json",)):
        foreign(folder / "model.safetensors")
        raise KeyboardInterrupt
    with claimed_folder(folder, ("check.json",)):
        pass
    # Done, and nothing says whose it is.
    with pytest.raises(UserError, match=r"model\.safetensors"), claimed_folder(folder, ("check",)):
        pass
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("written", "stays"),
    [((), False), (("model.safetensors",), True), (("model.safetensors", "check.json"), False)],
)
def test_a_failure_leaves_a_mark_only_where_one_is_needed(
    tmp_path: Path, written: tuple[str, ...], stays: bool
) -> None:
    with pytest.raises(UserError), claimed_folder(tmp_path / "timm", ("check.json",)) as folder:
        assert (tmp_path / "state" / "timm.writing").exists()
        for name in written:
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
        raise UserError("the encoder does not fit")
    assert (tmp_path / "state").exists() == stays
    with claimed_folder(tmp_path / "timm", ("check.json",)):
        pass
    assert not (tmp_path / "state").exists()


def test_every_command_refuses_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n".join(urls(3)))
    images = image_store(tmp_path / "images/a", 4)
    embeddings_file(tmp_path / "e.h5", unit_vectors(8, 4))
    centroids_file(tmp_path / "c.h5", unit_vectors(3, 4))
    trainable.save(trainable.build("mlcd_vit_tiny_patch8", 16, 32), tmp_path / "train", {})
    inputs = f"--labels l.h5 --embeddings e.h5 --images {images}"
    columns = "--caption-column null --hash-column null"
    for command, outputs in (
        (f"prepare --metadata a.txt --output urls {columns}", "urls/a-00000.parquet"),
        (f"prepare --metadata a.txt --output urls {columns}", "urls/a-00000.json"),
        (f"embed --images {images} --output out.h5 --image-size 32", "out.h5"),
        ("cluster --embeddings e.h5 --output out.h5 --k 2", "out.h5"),
        ("cluster --embeddings e.h5 --output x/out.h5 --k 2", "x/iterations.jsonl"),
        ("label --embeddings e.h5 --centroids c.h5 --output out.h5 --top 1", "out.h5"),
        ("encode images --model train --output out.h5", "out.h5"),
        ("search images/a.jpg --folder images --model train --output out.html", "out.html"),
        (
            "export --encoder train --output out --formats transformers",
            "out/transformers/config.json",
        ),
        ("report --part cluster --centroids c.h5 --output out.svg", "out.svg"),
        ("evaluate --part metrics --features e.h5 --output out.json", "out.json"),
        ("ablate --runs train --output table.csv", "table.csv"),
        ("ablate --runs train --output table.csv", "orders.csv"),
        (f"train {inputs} --centroids c.h5 --output run", "run/encoder.safetensors"),
        (f"train {inputs} --centroids c.h5 --output run", "run/encoder.json"),
        (f"train {inputs} --centroids c.h5 --output run", "run/metrics.jsonl"),
        ("text --part tower --embeddings e.h5 --captions c.h5 --output run", "run/text.json"),
    ):
        path = tmp_path / outputs
        before = foreign(path)
        assert main(command.split()) == 2, command
        said = capsys.readouterr().err
        assert "not written by mlcd" in said and path.name in said, (command, said)
        assert path.read_bytes() == before
        path.unlink()


def test_devices_and_places_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings_file(tmp_path / "e.h5", unit_vectors(8, 4))
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file").write_text("x")
    arguments = ["cluster", "--embeddings", str(tmp_path / "e.h5"), "--k", "2", "--output"]
    for name, message in (
        ("pipe.h5", "a device"), ("folder.h5", "is a folder"), ("file/a.h5", "is a file"),
    ):  # fmt: skip
        assert main([*arguments, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    lists = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a.jpg"]}), lists)
    for name in ("file", "file/below"):
        assert main(["download", "--urls", str(lists), "--output", str(tmp_path / name)]) == 2
        assert "is a file" in capsys.readouterr().err
    assert json.dumps((tmp_path / "file").read_text()) == '"x"'

"""Whole runs of stage download: killed, short of rows, at the deadline, resized."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.builders import jpeg
from helpers.download_runs import contents, download, image_of, states
from helpers.hostile_server import HostileServer, number_of
from helpers.paths import ROOT
from helpers.url_lists import write_list
from mlcd.config import Download
from mlcd.data.decode import decode
from mlcd.utils.errors import UserError

SOURCE = str(ROOT / "src")


def test_options_are_the_config_keys() -> None:
    parser = argparse.ArgumentParser()
    from mlcd.stages.download import add_arguments

    add_arguments(parser.add_argument_group())
    given = parser.parse_args(["--urls", "a.parquet", "--output", "out"])
    files = {"urls": "a.parquet", "output": "out"}
    assert vars(given) == files | {"processes": 0, "threads": 64, "top_up": False}
    assert set(Download().fetched()) < set(Download.model_fields)


def test_killed_run_resumes_and_ends_with_the_same_bytes(
    server: HostileServer, tmp_path: Path
) -> None:
    kinds = ["pause", "pause", "ok", "missing", "truncated", "png"]
    urls = [server.url(f"{kinds[row % len(kinds)]}/{row}-k.jpg") for row in range(700)]
    lists = write_list(tmp_path / "urls/a.parquet", url=urls)
    calm, killed = tmp_path / "calm/a", tmp_path / "killed/a"
    keys = {"min_success": 0.2, "rows_per_tar": 64}
    download(lists, calm, processes=2, **keys)
    server.asked.clear()

    section = json.dumps({"timeout": 5, "backoff": 0.1, "passes": 2, **keys})
    command = [sys.executable, "-m", "mlcd", "download", "--urls", str(lists), "--output",
               str(killed), "--processes", "1", "--threads", "8", "--config", section]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.monotonic() + 90
    try:
        # Amidst the second shard: the first has its proof.
        while not list(killed.parent.glob("state/a-*/pass-01/shards/00001.tar")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
    finally:
        # Only the parent is killed: its children must notice.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    assert not (killed / "manifest.json").exists()
    [state] = states(killed)
    assert [path.name for path in (state / "pass-01/proof").iterdir()] == ["00000.parquet"]

    subprocess.run(command, env=environment, check=True, timeout=120)
    assert contents(killed) == contents(calm)
    first = [urls[row].rpartition(":")[2].partition("/")[2] for row in range(350)]
    assert all(server.asked[f"/{path}"] == 1 for path in first)
    assert states(killed) == []


def test_too_few_rows_fail_and_a_rerun_fixes(server: HostileServer, tmp_path: Path) -> None:
    paths = [f"ok/{row}-m.jpg" for row in range(6)]
    paths += [f"flaky/{row}-m.jpg" for row in range(3)] + ["missing/m.jpg"]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    output = tmp_path / "images/a"
    keys = {"passes": 1, "min_success": 0.8}
    with pytest.raises(UserError) as error:
        download(lists, output, **keys)
    message = str(error.value)
    assert "6 of 10 rows arrived (60.0%)" in message
    assert "success 6, server_error 3, not_found 1" in message
    assert "rerun to try 3 of them again" in message
    assert not (output / "manifest.json").exists()

    with pytest.raises(UserError, match=r"9 of 10 rows arrived .*; check the list"):
        download(lists, output, passes=1, min_success=0.95)
    assert server.asked["/flaky/0-m.jpg"] == 2
    assert server.asked["/ok/0-m.jpg"] == server.asked["/missing/m.jpg"] == 1

    # A lower demand takes what is there, unless it is damaged by now: that is fetched again.
    [state] = states(output)
    proof = pd.read_parquet(state / "pass-01/proof/00000.parquet")
    tar = state / "pass-01/shards/00000.tar"
    data = bytearray(tar.read_bytes())
    data[proof.offset[3] + 100] ^= 0x55
    tar.write_bytes(data)
    store = download(lists, output, **keys)
    assert store.manifest["counts"] == {"success": 9, "not_found": 1}
    for row in store.table().query("reason == ''").itertuples():
        assert image_of(store, row) == jpeg(number_of(row.url))
    assert server.asked["/ok/0-m.jpg"] == server.asked["/missing/m.jpg"] == 2


def test_deadline_ends_what_drips_and_keeps_what_arrived(
    server: HostileServer, tmp_path: Path
) -> None:
    paths = ["ok/1-d.jpg", "drip/1-d.jpg", "ok/2-d.jpg", "drip/2-d.jpg"]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    start = time.monotonic()
    store = download(lists, tmp_path / "images/a", deadline=16, transfer_timeout=600)
    assert time.monotonic() - start < 30
    assert store.table()["reason"].tolist() == ["", "deadline", "", "deadline"]


def test_processes_that_miss_the_deadline_are_ended_and_the_rerun_resumes(
    server: HostileServer, tmp_path: Path
) -> None:
    paths = [f"ok/{row}-h.jpg" for row in range(4)]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    output = tmp_path / "images/a"
    # Too short for img2dataset even to start.
    with pytest.raises(UserError, match=r"0 of 4 rows arrived .*: deadline 4; rerun"):
        download(lists, output, deadline=0.3)
    keys = {"image_size": None, "deadline": 600}
    assert download(lists, output, **keys).manifest["counts"] == {"success": 4}


def test_images_are_resized(server: HostileServer, tmp_path: Path) -> None:
    paths = [
        "large/1.jpg", "png/2.png", "truncated/3.jpg", "noai/4.jpg", "bomb/5.png", "gray16/6.png",
        "thin/7.png",
    ]  # fmt: skip
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    store = download(lists, tmp_path / "images/a", image_size=24, respect_opt_out=False)
    rows = store.table()
    assert rows["reason"].tolist() == ["", "", "damaged", "", "too_large", "", "too_thin"]
    assert rows["passes"].tolist() == [1] * len(paths)
    sizes = []
    for row in rows[rows["reason"] == ""].itertuples():
        data = image_of(store, row)
        assert data[:2] == b"\xff\xd8"
        image = decode(data, max_pixels=10_000)
        assert image.size == (row.width, row.height)
        assert hashlib.sha256(data).hexdigest() == row.sha256
        sizes.append(image.size)
    assert sizes == [(24, 36), (32, 24), (24, 24), (32, 24)]
    assert np.asarray(decode(image_of(store, rows.loc[1]), max_pixels=9999)).std()
    gray = decode(image_of(store, rows.loc[5]), max_pixels=9999)
    assert 69 <= np.asarray(gray).min() <= np.asarray(gray).max() <= 71


def test_a_crash_of_img2dataset_shows_its_log(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken/img2dataset").mkdir(parents=True)
    (tmp_path / "broken/img2dataset/__init__.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url("ok/1.jpg")])
    with pytest.raises(UserError) as error:
        download(lists, tmp_path / "images/a")
    assert "img2dataset.log: img2dataset ended by exit status 1" in str(error.value)
    assert "RuntimeError: half installed" in str(error.value)


def test_rows_of_one_batch_meet_their_own_image(server: HostileServer, tmp_path: Path) -> None:
    """Shards of two processes, tars of an odd size, leftovers of older runs and other chunks."""
    urls = [server.url(f"ok/{row}-z.jpg") for row in range(520)]
    lists = write_list(
        tmp_path / "urls/a.b.parquet", url=pa.array(urls).dictionary_encode(), caption=urls
    )
    output = tmp_path / "images/a.b"
    output.mkdir(parents=True)
    for name in ("00099.tar", "00098.tar", ".notes.tmp"):
        (output / name).write_bytes(b"old")
    # Of the two tars one is said to be ours; the other stays.
    tars = [{"name": "00099.tar", "bytes": 3}]
    earlier = {"format": 1, "chunk": "a.b", "tars": tars, "fingerprint": ""}
    (output / "manifest.json").write_text(json.dumps(earlier))
    other = output.parent / "state/a.c-0123456789abcdef"
    older = output.parent / "state/a.b-0123456789abcdef"
    older.mkdir(parents=True)
    other.mkdir()
    store = download(lists, output, processes=2, rows_per_tar=77)
    assert list(other.parent.iterdir()) == [other]
    assert {path.name for path in output.iterdir() if path.suffix != ".tar"} == {
        "manifest.json", "rows.parquet", ".notes.tmp",
    }  # fmt: skip
    tars = sorted(path.name for path in output.glob("*.tar"))
    assert tars == [*(f"{number:05d}.tar" for number in range(7)), "00098.tar"]
    table = pd.read_parquet(output / "rows.parquet")
    assert table["caption"].tolist() == urls
    assert [tar["images"] for tar in store.manifest["tars"]] == [77] * 6 + [58]
    for row in table.itertuples():
        assert image_of(store, row) == jpeg(number_of(row.url))
    assert pq.read_metadata(output / "rows.parquet").num_row_groups == 1

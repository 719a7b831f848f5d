"""Stage cluster as a run: killed, damaged, refused, limited in memory, on many ranks."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers import builders
from helpers.cluster_runs import files_of, run
from helpers.memory import many_rows, peak_memory
from helpers.refusals import refused
from mlcd import cli
from mlcd.config import Cluster
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.launch import resume
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster import initial, saved_state
from mlcd.stages.cluster.kmeans import run_kmeans

SLOW = """
import sys, time
from mlcd import cli
from mlcd.stages.cluster import saved_state
save = saved_state.save
def slow(folder, state):
    save(folder, state)
    print("saved", len(state.records), flush=True)
    time.sleep(0.2)
saved_state.save = slow
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(1200, 24, groups=20), 2)
    options = ["--k", "40", "--iterations", "8", "--threads", "1"]
    assert run(files, tmp_path / "whole/c.h5", *options) == 0
    words = ["cluster", "--embeddings", *map(str, files), "--output", str(tmp_path / "cut/c.h5")]
    for after in (2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *words, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        )
        for _ in range(after):
            assert process.stdout.readline().startswith("saved")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    states = sorted((tmp_path / "cut/state").glob("*/iteration-*.h5"))
    assert [path.name for path in states] == ["iteration-000004.h5", "iteration-000005.h5"]
    assert run(files, tmp_path / "cut/c.h5", *options) == 0
    for name in ("c.h5", "iterations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut/state").iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(open_all(files_of(tmp_path, builders.unit_vectors(300, 16, groups=9))), 300)
    section = Cluster(k=9, iterations=4)
    folder = tmp_path / "state"
    folder.mkdir()
    whole = run_kmeans(rows, section, lambda: initial.random_rows(rows, 9, 0), folder)
    newest = max(folder.glob("*.h5"))
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        with h5py.File(newest) as file:
            place = file["centroid"].id.get_chunk_info(0).byte_offset
        data[place + 5] ^= 4
    newest.write_bytes({"flip": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
    assert len(saved_state.load(folder).records) == 3
    again = run_kmeans(rows, section, lambda: pytest.fail("started anew"), folder)
    assert again.centers.tobytes() == whole.centers.tobytes()
    assert again.records == whole.records


def test_changed_section_or_input_never_meets_an_old_state(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(200, 8))
    others = files_of(tmp_path / "other", builders.unit_vectors(200, 8, seed=1))
    options = ["--k", 7, "--iterations", 3, "--seed"]
    for name, (paths, seed) in {"a": (files, 0), "b": (files, 1), "c": (others, 0)}.items():
        assert run(paths, tmp_path / name / "c.h5", *options, seed) == 0
        # The same run where the others left states behind ends with the same bytes.
        assert run(paths, tmp_path / "shared/c.h5", *options, seed) == 0
        result = (tmp_path / name / "c.h5").read_bytes()
        assert (tmp_path / "shared/c.h5").read_bytes() == result


@pytest.mark.parametrize("limit", ["keep", "stream"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_nan_or_zero_row_is_refused_by_file_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, limit: str
) -> None:
    vectors = builders.unit_vectors(100, 8)
    vectors[77] = value
    files = files_of(tmp_path, vectors, 2)
    options = [] if limit == "keep" else ["--memory-limit", builders.memory_limit(450)]
    assert run(files, tmp_path / "c.h5", "--k", 4, *options) == 2
    refused(capsys, f"{tmp_path}/e1.h5: row 27")
    assert not (tmp_path / "c.h5").exists()


def test_unfitting_files_are_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = files_of(tmp_path / "good", builders.unit_vectors(20, 8), 2)
    wide = files_of(tmp_path / "wide", builders.unit_vectors(20, 9))
    other = files_of(tmp_path / "other", builders.unit_vectors(20, 8), model="another")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(good[0].read_bytes()[:-3000])
    cases = [
        ([*good, *wide], 4, [str(wide[0]), "9 dimensions"]),
        ([*good, *other], 4, [str(other[0]), "another model"]),
        (good, 21, ["cluster.k", "21 clusters of 20 rows"]),
        ([good[0], good[0]], 4, [str(good[0]), "twice"]),
        ([*good, tmp_path / "none.h5"], 4, ["none.h5", "no such file"]),
        ([*good, cut], 4, [str(cut), "not a whole HDF5"]),
    ]
    for files, k, words in cases:
        assert run(files, tmp_path / "out/c.h5", "--k", k) == 2
        refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_foreign_files_of_different_models_are_refused(tmp_path: Path, capsys) -> None:
    for name, model in {"a": "ViT-L-14", "b": "ViT-L-14", "c": "ViT-B-32", "d": "ViT-L-14"}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["embedding"] = builders.unit_vectors(50, 8, seed=ord(name))
            file.attrs["model"] = model
    a, b, c = (tmp_path / f"{name}.h5" for name in "abc")
    assert run([a, b, c], tmp_path / "out/c.h5", "--k", 4) == 2
    refused(capsys, f"{c}: made by another model")
    with h5py.File(tmp_path / "d.h5", "a") as file:
        file["extra"] = np.arange(3)
    assert run([a, b, tmp_path / "d.h5"], tmp_path / "out/c.h5", "--k", 4) == 0


def test_flipped_bit_is_refused_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = files_of(tmp_path, builders.unit_vectors(200, 8), 2)
    with h5py.File(files[1]) as file:
        place = file["embedding"].id.get_chunk_info(0).byte_offset
    data = bytearray(files[1].read_bytes())
    data[place + 100] ^= 1
    files[1].write_bytes(data)
    assert run(files, tmp_path / "c.h5", "--k", 4) == 2
    refused(capsys, f"{files[1]}: damaged data")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory-limit", "10MB"], ["--memory-limit", "too little", "at least"]),
        (["--memory-limit", "much"], ["--memory-limit", "'much' is no size"]),
        (["--device", "cuda"], ["--device cuda", "no GPU"]),
        (["--k", 0], ["cluster.k", "more than 0"]),
    ],
)
def test_bad_options(tmp_path: Path, capsys, options: list, words: list[str]) -> None:
    import faiss

    if "cuda" in options and faiss.get_num_gpus():
        pytest.skip("faiss sees a GPU")
    files = files_of(tmp_path, builders.unit_vectors(20, 8))
    assert run(files, tmp_path / "c.h5", "--k", 4, *options) == 2
    refused(capsys, *words)


@pytest.mark.parametrize(("k", "threads"), [(32, 1), (1024, 2)])
def test_peak_memory_stays_within_the_limit(tmp_path: Path, k: int, threads: int) -> None:
    words = ["cluster", "--embeddings", many_rows(tmp_path / "e.h5"), "--output", tmp_path / "c.h5"]
    words += ["--k", k, "--iterations", 2, "--memory-limit", "400MiB", "--threads", threads]
    assert peak_memory(*words) <= 400 << 20


def test_the_next_block_is_read_while_one_is_at_work(tmp_path: Path, monkeypatch) -> None:
    rows = Rows(open_all(files_of(tmp_path, builders.unit_vectors(40, 8), 2)), 10)
    read, reads = Embeddings.read, []

    def noted(self, start, stop):
        reads.append(start)
        return read(self, start, stop)

    monkeypatch.setattr(Embeddings, "read", noted)
    for number, _ in enumerate(rows.blocks()):
        until = time.monotonic() + 30
        while number < 3 and len(reads) < number + 2:
            assert time.monotonic() < until, "the next block waits for this one"
            time.sleep(0.001)
        # One ahead and no more: each costs memory.
        assert len(reads) <= number + 2


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_parts_of_ranks_are_all_rows_once(tmp_path: Path, ranks: int) -> None:
    files = open_all(files_of(tmp_path, builders.unit_vectors(101, 8), 3))
    whole = np.concatenate([block for _, block in Rows(files, 9).blocks()])
    parts = [Rows(files, 9, part=(rank, ranks)) for rank in range(ranks)]
    blocks = [(start, block) for part in parts for start, block in part.blocks()]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    lengths = [len(block) for _, block in blocks]
    assert [start for start, _ in blocks] == np.cumsum([0, *lengths[:-1]]).tolist()
    sizes = [sum(len(block) for _, block in part.blocks()) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list, Path]:
    """Files, options and the output of one process, with all that spares products at work."""
    folder = tmp_path_factory.mktemp("wide")
    vectors = builders.unit_vectors(6000, 64, groups=900)
    vectors[100:130] = vectors[7]
    files = files_of(folder, vectors, 2)
    options = ["--k", 1200, "--iterations", 8, "--threads", 1]
    assert run(files, folder / "one/c.h5", *options) == 0
    return files, options, folder / "one"


@pytest.mark.parametrize(
    ("ranks", "products"),
    [(2, "float32"), pytest.param(4, "float32", marks=pytest.mark.long), (1, "bfloat16"),
     pytest.param(3, "float16", marks=pytest.mark.long)],
)  # fmt: skip
def test_ranks_and_products_give_the_same_bytes(
    tmp_path: Path, wide, ranks: int, products: str
) -> None:
    files, options, one = wide
    more = ["--ranks-per-node", ranks, "--device", "cpu", "--products", products]
    assert run(files, tmp_path / "c.h5", *options, *more) == 0
    for name in ("c.h5", "iterations.jsonl"):
        assert (one / name).read_bytes() == (tmp_path / name).read_bytes()


def test_ranks_wait_for_the_slowest_for_days(tmp_path: Path, monkeypatch) -> None:
    import torch
    import torch.distributed as dist

    from mlcd.stages.cluster.rank import cluster_rank

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    waits = []

    def clustering(*arguments: object) -> None:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        waits.append(backend.options._timeout)

    monkeypatch.setattr("mlcd.stages.cluster.rank.cluster", clustering)
    cluster_rank([], {"k": 2}, 0, str(tmp_path), "cpu", 1)
    assert waits[0] > datetime.timedelta(days=20)
    # More would not fit an int of milliseconds.
    assert waits[0] < datetime.timedelta(milliseconds=2**31)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("products", ["float32", "float16"])
def test_gpus_give_the_same_bytes(tmp_path: Path, wide, ranks: int, products: str) -> None:
    import faiss
    import torch

    found = faiss.get_num_gpus() if products == "float32" else torch.cuda.device_count()
    if found < ranks:
        pytest.skip(f"fewer than {ranks} GPUs for products of {products}")
    files, options, one = wide
    more = ["--device", "cuda", "--products", products, "--ranks-per-node", ranks]
    assert run(files, tmp_path / "c.h5", *options, *more) == 0
    assert (one / "c.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()


@pytest.mark.parametrize(
    "killed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)],
)  # fmt: skip
def test_gang_with_a_killed_rank_starts_again_and_gives_the_same_bytes(
    tmp_path: Path, wide, killed: int
) -> None:
    files, options, one = wide
    words = ["cluster", "--embeddings", *files, "--output", tmp_path / "c.h5", *options]
    gang = subprocess.Popen(
        [sys.executable, "-m", "mlcd", *map(str, words), "--ranks-per-node", "3"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    while not list(tmp_path.glob("state/*/iteration-000001.h5")):
        assert gang.poll() is None, gang.stderr.read()
        time.sleep(0.005)
    (place,) = tmp_path.glob(f"state/c.h5.gang/**/rank-{killed}.json")
    os.kill(json.loads(place.read_text())["pid"], signal.SIGKILL)
    said = gang.communicate()[1]
    # Something had been saved since its start.
    assert gang.returncode == 0, said
    assert f"rank {killed} of 3 was killed" in said
    assert "starting again from the newest checkpoint" in said
    for name in ("c.h5", "iterations.jsonl"):
        assert (one / name).read_bytes() == (tmp_path / name).read_bytes()


def test_cut_off_while_its_state_is_removed_resumes(tmp_path: Path, wide, monkeypatch) -> None:
    files, options, one = wide
    words = [files, tmp_path / "c.h5", *options, "--ranks-per-node", 2]

    def cut_off(folder: Path) -> None:
        # In the order of a directory's entries, which is any.
        for path in folder.glob("iteration-*.h5"):
            path.unlink()
        raise ConnectionError("killed here")

    monkeypatch.setattr(resume, "remove", cut_off)
    assert run(*words) == 1
    monkeypatch.undo()
    assert run(*words) == 0
    assert (one / "c.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()
    assert not list(tmp_path.glob("state/*"))


@pytest.mark.parametrize("reader", ["initial", "assigning"])
def test_bad_row_is_named_by_the_rank_that_reads_it(tmp_path: Path, capsys, reader: str) -> None:
    vectors = builders.unit_vectors(100, 8)
    vectors[97] = 0
    files = files_of(tmp_path, vectors, 2)
    # Rank 0 meets the row if the first center is taken from its file, else rank 1 in its pass.
    first = [np.random.default_rng(seed).choice(100, 1, shuffle=False)[0] for seed in range(20)]
    seed = next(s for s in range(20) if (first[s] >= 50) == (reader == "initial"))
    options = ["--k", 1, "--seed", seed, "--threads", 1, "--ranks-per-node", 2]
    assert run(files, tmp_path / "c.h5", *options) == 2
    refused(capsys, f"{tmp_path}/e1.h5: row 47", "all zeros")


def test_altered_records_of_a_checkpoint_are_noticed(tmp_path: Path) -> None:
    centers, size = builders.unit_vectors(3, 4), np.array([1, 2, 3])
    saved_state.save(tmp_path, saved_state.State(centers, size, [{"objective": 0.5}]))
    saved_state.save(tmp_path, saved_state.State(centers, size, [{"objective": 0.5}] * 2))
    with h5py.File(max(tmp_path.glob("*.h5")), "r+") as file:
        file.attrs["records"] = json.dumps([{"objective": 0.7}] * 2)
    assert saved_state.load(tmp_path).records == [{"objective": 0.5}]

"""How fast `mlcd explore` answers at K of a million and a hundred million images.

    python benchmarks/explore.py                       the size of the goals; 7 GB of disk
    python benchmarks/explore.py --clusters 10000 --images 1000000

The index is not built but written with random numbers, as large as that of such a run, and so are
one chunk's labels and embeddings, which stand for all chunks by links. Its captions repeat, and its
images are those of the demo, so that thumbnails are real. Then `mlcd explore` is started on it,
and asked as the page asks. Prints seconds to start, milliseconds of each kind of click (median,
95th percentile, maximum; on a busy machine the CPU time says more), and the peak of its memory.
Goals: 5 s, 300 ms, 1 GB. Everything is written below --folder and removed at the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import h5py
import numpy as np
import psutil

from mlcd.commands.explore import INDEX
from mlcd.commands.explore.answers import Answers
from mlcd.commands.explore.build import SORTS
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.commands.explore.index import open_index
from mlcd.commands.explore.layout import SIDE, morton
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.store import Files
from mlcd.commands.explore.texts import BLOCK, _packed
from mlcd.commands.explore.words import hash_of
from mlcd.data import hdf5
from mlcd.data.image_store import MANIFEST, fingerprint
from mlcd.data.members import labeled_members
from mlcd.data.tars import digest_of
from mlcd.neighbors.two_level import group_count
from mlcd.utils.files import sha256_json
from mlcd.utils.records import write_record

_IMAGES = Path(__file__).parents[1] / "demo" / "openclipart.tar"
_D, _L, _NEIGHBORS = 384, 8, 15
_CHUNK_ROWS = 446_429
_BLOCK = 1 << 22
_WORDS, _TEXT_BLOCKS = 20_000, 1000
GOALS = {"start": (5, "s"), "click": (300, "ms"), "memory": (1000, "MB")}


def write_run(results: Path, k: int, n: int) -> int:
    """Write files that a run of `n` images would have, those of all chunks by links; return n."""
    rng = np.random.default_rng(0)
    chunks = max(1, round(n / _CHUNK_ROWS))
    rows = n // chunks
    images = [data for _, data, _ in labeled_members(_IMAGES)][:64]
    first = results / "images" / "part-00000"
    first.mkdir(parents=True)
    (first / "00000.tar").write_bytes(b"".join(images))
    size = (first / "00000.tar").stat().st_size
    tar = {"name": "00000.tar", "sha256": "", "bytes": size, "images": len(images)}
    manifest = {"format": 1, "chunk": "part-00000", "rows": len(images), "table": "", "tars": [tar],
                "counts": {"success": len(images)}}  # fmt: skip
    write_record(first / MANIFEST, {**manifest, "fingerprint": fingerprint(manifest)})
    embeddings = results / "embeddings" / "part-00000.h5"
    about = {"chunk": "part-00000", "model": "{}", "manifest": fingerprint(manifest)}
    with hdf5.writing(embeddings, "embeddings", about) as writer:
        for start in range(0, rows, 1 << 16):
            block = rng.standard_normal((min(1 << 16, rows - start), _D), np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            writer.append("embedding", block.astype(np.float16))
    centroids = results / "clusters" / "centroids.h5"
    _write_centroids(centroids, k)
    labels = results / "labels" / "part-00000.h5"
    similarity = np.sort(rng.uniform(0.3, 0.9, (rows, _L)).astype(np.float16))[:, ::-1]
    hdf5.write(
        labels, "labels",
        {"label": rng.integers(0, k, (rows, _L), np.int32), "similarity": similarity,
         "gap": np.zeros(rows, np.float16)},
        {"chunk": "part-00000", "num_classes": k, "embeddings": hdf5.fingerprint(embeddings),
         "centroids": hdf5.fingerprint(centroids), "section": "{}"},
    )  # fmt: skip
    for number in range(1, chunks):
        for path in (embeddings, labels):
            os.link(path, path.with_name(f"part-{number:05d}.h5"))
        other = first.with_name(f"part-{number:05d}")
        other.mkdir()
        for path in first.iterdir():
            os.link(path, other / path.name)
    return chunks * rows


def _write_centroids(path: Path, k: int) -> None:
    """Write centroids whose rows are never read: they take no room."""
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w", libver="v110") as file:
        file.create_dataset("centroid", (k, _D), np.float32, chunks=(min(k, 512), _D))
        file.create_dataset("size", (k,), np.int64, chunks=(min(k, 1 << 17),))
        about = {"kind": "centroids", "model": "{}", "embeddings": "[]", "section": "{}"}
        content = {"centroid": "", "size": ""}
        file.attrs.update({**about, "content": json.dumps(content),
                           "fingerprint": sha256_json([content, about])})  # fmt: skip


def write_index(results: Path, n: int) -> None:
    """Write an index as large as that of the run."""
    run = Run(results)
    k, rng = run.K, np.random.default_rng(1)
    files = Files(results / INDEX / f"index-{run.fingerprint[:16]}")
    files.folder.mkdir(parents=True)
    share = rng.lognormal(0, 0.8, k)
    size = rng.multinomial(n, share / share.sum())
    ends = np.concatenate([[0], np.cumsum(size)])
    files.write("member_ends", ends)
    _write_members(files, n, ends)
    _write_places(files, n, rng)
    _write_texts(files, run, rng)
    _write_words(files, k, n, rng)
    columns = {"size": size, "use": size * _L + rng.integers(0, 99, k)}
    for name in SORTS:
        column = columns.get(name, rng.random(k, np.float32))
        files.write(name, column)
        files.write(f"by_{name}", np.argsort(-column, kind="stable").astype("i4"))
    groups = group_count(k)
    directions = rng.standard_normal((groups, _D), np.float32)
    files.write("group_directions", directions / np.linalg.norm(directions, axis=1)[:, None])
    files.write("group_ends", np.linspace(0, k, groups + 1).astype(np.int64))
    files.write("center_ids", rng.permutation(k).astype("i4"))
    rows = files.sink("center_rows", "f2", (_D,))
    neighbors = files.sink("neighbors", "i4", (_NEIGHBORS,))
    for start in range(0, k, 1 << 16):
        block = rng.standard_normal((min(1 << 16, k - start), _D), np.float32)
        rows.append(block / np.linalg.norm(block, axis=1, keepdims=True))
        neighbors.append(rng.integers(0, k, (len(block), _NEIGHBORS)))
    rows.close()
    neighbors.close()
    files.write("neighbor_similarity", np.sort(rng.random((k, _NEIGHBORS), np.float32))[:, ::-1])
    place = np.clip(rng.standard_normal((k, 2)) * SIDE / 6 + SIDE / 2, 0, SIDE - 1).astype("u2")
    order = np.argsort(morton(place), kind="stable")
    files.write("map_ids", order.astype("u4"))
    files.write("map_places", place[order])
    files.finish({"made_from": run.fingerprint, "k": k, "images": n, "labels_per_image": _L,
                  "chunks": run.chunks, "has_images": True, "known": list(SORTS)})  # fmt: skip


def _write_members(files: Files, n: int, ends: np.ndarray) -> None:
    members, similarity = files.sink("members", "u4"), files.sink("member_similarity", "f2")
    signature, rng = files.sink("member_signature", "u8"), np.random.default_rng(4)
    for start in range(0, n, _BLOCK):
        number = np.arange(start, min(start + _BLOCK, n))
        # One to one where n has no factor of this prime: images of a cluster lie far apart.
        members.append(number * 1_000_003 % n)
        cluster = np.searchsorted(ends, number, "right") - 1
        part = (number - ends[cluster]) / np.maximum(ends[cluster + 1] - ends[cluster], 1)
        similarity.append(0.9 - 0.5 * part)
        signature.append(rng.integers(0, 1 << 63, len(number), np.uint64))
    for sink in (members, similarity, signature):
        sink.close()


def _write_places(files: Files, n: int, rng: np.random.Generator) -> None:
    images = [data for _, data, _ in labeled_members(_IMAGES)][:64]
    sizes = np.array([len(data) for data in images])
    offsets = np.cumsum([0, *sizes[:-1]])
    digests = np.array([digest_of(data) for data in images], np.uint64)
    sinks = [files.sink(f"image_{name}", kind)
             for name, kind in (("place", "u8"), ("size", "u4"), ("digest", "u8"))]  # fmt: skip
    for start in range(0, n, _BLOCK):
        chosen = rng.integers(0, len(images), min(_BLOCK, n - start))
        for sink, column in zip(sinks, (offsets, sizes, digests), strict=True):
            sink.append(column[chosen])
    for sink in sinks:
        sink.close()


def _write_texts(files: Files, run: Run, rng: np.random.Generator) -> None:
    def block() -> bytes:
        captions = [
            " ".join(f"w{word}" for word in rng.zipf(1.4, 4) % _WORDS) for _ in range(BLOCK)
        ]
        urls = [f"https://example.org/{word:08x}.jpg" for word in rng.integers(0, 1 << 32, BLOCK)]
        return zlib.compress(_packed(captions, urls), 6)

    pool = [block() for _ in range(_TEXT_BLOCKS)]
    lengths = np.array([len(one) for one in pool])
    blocks = [-(-int(rows) // BLOCK) for rows in np.diff(run.starts)]
    files.write("text_chunks", np.cumsum([0, *blocks[:-1]]))
    data, ends = files.sink("texts", "u1"), files.sink("text_blocks", "i8")
    ends.append(np.zeros(1))
    end, total = 0, sum(blocks)
    for start in range(0, total, 1 << 16):
        chosen = rng.integers(0, len(pool), min(1 << 16, total - start))
        data.append(np.frombuffer(b"".join(pool[i] for i in chosen), np.uint8))
        ends.append(end + np.cumsum(lengths[chosen]))
        end += int(lengths[chosen].sum())
    data.close()
    ends.close()


def _write_words(files: Files, k: int, n: int, rng: np.random.Generator) -> None:
    hashes = np.sort(hash_of([f"w{word}" for word in range(_WORDS)]))
    # Zipf's law, half of all captions' words being those of every language.
    lengths = np.minimum(k, 1 + 2 * n / np.arange(1, _WORDS + 1) ** 1.1 / 10).astype(np.int64)
    rng.shuffle(lengths)
    clusters, counts = files.sink("word_clusters", "u4"), files.sink("word_counts", "u2")
    ends = [0]
    for length in lengths:
        found = np.unique(rng.integers(0, k, length))
        clusters.append(found)
        counts.append(rng.integers(1, 9, len(found)))
        ends.append(clusters.rows)
    files.write("word_hashes", hashes.astype("u4"))
    files.write("word_ends", np.array(ends))
    clusters.close()
    counts.close()


def forget(folder: Path) -> None:
    """Tell the system to drop the files from its memory: the first clicks read the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def asked(k: int, chunks: int, rows: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """Iterate over kinds of clicks: a name, and what makes an address of one by chance."""
    rng = np.random.default_rng(2)
    number = lambda most: int(rng.integers(0, most))  # noqa: E731
    names = list(SORTS)
    yield (
        "list, any order and page",
        lambda: (
            f"api/clusters?by={names[number(5)]}&order={['up', 'down'][number(2)]}"
            f"&start={number(k)}&count=48"
        ),
    )
    yield "a cluster with 60 images", lambda: f"api/cluster/{number(k)}?count=60"
    yield "a cluster, its words found", lambda: f"api/cluster/{number(k)}?count=60&words=w1"
    yield "an image with its labels", lambda: f"api/image/{number(chunks)}/{number(rows)}"
    yield "two words", lambda: f"api/words?q=w{number(_WORDS)}+w{number(_WORDS)}"
    yield (
        "a tile of the map",
        lambda: f"map/{(z := number(9))}/{number(1 << z)}/{number(1 << z)}?by=use",
    )
    yield "a thumbnail", lambda: f"image/{number(chunks)}/{number(rows)}/320"


def _cpu(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process took so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(folder: Path, k: int, n: int, repeats: int) -> None:
    """Start the server and ask it."""
    results = folder / "results"
    chunks = len(list((results / "labels").glob("*.h5")))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlcd", "explore", str(results)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = (re.search(r"http://\S+", line) for line in iter(process.stdout.readline, ""))
        address = urlsplit(next(match[0] for match in found if match))
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        connection.request("GET", f"{address.path}api/about")
        assert connection.getresponse().read()
        start = time.monotonic() - began
        server = psutil.Process(process.pid)
        print(f"start: {start:.2f} s, of which {_cpu(server):.2f} s of CPU")
        slowest = 0.0
        for name, make in asked(k, chunks, n // chunks):
            times, used = [], _cpu(server)
            for _ in range(repeats):
                began = time.perf_counter()
                connection.request("GET", address.path + make())
                answer = connection.getresponse()
                body = answer.read()
                times.append(1000 * (time.perf_counter() - began))
                assert answer.status == 200, body
            middle, late = np.quantile(times, [0.5, 0.95])
            slowest = max(slowest, max(times))
            used = 1000 * (_cpu(server) - used) / repeats
            print(f"{name}: median {middle:.1f} ms, 95 % {late:.1f} ms, most {max(times):.1f} ms; "
                  f"CPU {used:.1f} ms on average", flush=True)  # fmt: skip
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]
        print(f"peak of memory: {peak:.0f} MB")
        for name, value in (("start", start), ("click", slowest), ("memory", peak)):
            limit, unit = GOALS[name]
            word = "met" if value <= limit else "short"
            print(f"goal {name}: at most {limit} {unit}: {value:.3g}, {word}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def search(results: Path, repeats: int) -> None:
    """Search by vectors by chance, in this process: what a search by an image does besides it."""
    run = Run(results)
    index = open_index(run, results / INDEX)
    encoder = QueryEncoder(run, None, device="cpu", threads=1, max_pixels=1)
    answers, rng, times = Answers(run, index, encoder), np.random.default_rng(3), []
    for _ in range(repeats):
        vector = rng.standard_normal(_D).astype(np.float32)
        began = time.perf_counter()
        found = answers.nearest(vector / np.linalg.norm(vector))
        times.append(1000 * (time.perf_counter() - began))
        assert found["clusters"] and found["images"]
    print(f"a search by a vector: median {np.median(times):.0f} ms, most {max(times):.0f} ms")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clusters", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=200, help="clicks of each kind [200]")
    parser.add_argument("--folder", type=Path, help="on a disk with 7 GB free [a temporary one]")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="explore-", dir=arguments.folder))
    try:
        began = time.monotonic()
        n = write_run(folder / "results", arguments.clusters, arguments.images)
        write_index(folder / "results", n)
        used = sum(path.stat().st_size for path in (folder / "results" / INDEX).rglob("*.bin"))
        print(f"{arguments.clusters:,} clusters, {n:,} images, an index of {used / 1e9:.2f} GB, "
              f"written in {time.monotonic() - began:.0f} s")  # fmt: skip
        forget(folder)
        measure(folder, arguments.clusters, n, arguments.repeats)
        search(folder / "results", max(1, arguments.repeats // 10))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""A whole chunk: `mlcd download` against img2dataset's own pipeline, in CPU ms per image.

    python benchmarks/download_chunk.py --images 600 --repeats 3

A server in a process of its own, on loopback, serves photographs, clip art and noise as JPEGs of
640 × 427 pixels (`jpegs.py`). Contenders take turns, each as a command of its own with one process
and 16 threads: img2dataset with `compute_hash sha256`, webdataset tars and one output shard, and
`mlcd download` with all checks. Bytes as they are served (img2dataset: `disable_all_reencoding`,
which does not look at an image; `decoding` is its `resize_mode no`, which decodes it and encodes it
again), and the shorter side made 384 pixels. CPU of the command and its children: what `--images`
take more than a tenth of them, per image.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import goals
import machine
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIDE, THREADS = 384, 16
#: Of img2dataset, and of ours.
MODES: dict[str, list[dict[str, object]]] = {
    "as served": [
        {"resize_mode": "no", "disable_all_reencoding": True},
        {},
        {"resize_mode": "no"},
    ],
    f"shorter side {SIDE}": [
        {"resize_mode": "keep_ratio", "image_size": SIDE, "resize_only_if_bigger": False,
         "encode_quality": 95},
        {"image_size": SIDE, "resize_mode": "keep_ratio"},
    ],
}  # fmt: skip
THEIRS = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


def serve(folder: str) -> None:
    bodies = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = bodies[int(self.path.strip("/").split(".")[0]) % len(bodies)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def images(kind: str, folder: Path, count: int) -> None:
    """Write JPEGs of one kind, a size that is no multiple of anything."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import jpegs as kinds

    folder.mkdir()
    rng = np.random.default_rng(0)
    for row, image in enumerate(kinds.KINDS[kind](count)):
        image = image.resize((640, 427)).transpose(int(rng.integers(0, 2)))
        image.save(folder / f"{row:05d}.jpg", quality=90, subsampling="4:2:0")


def cpu_of(command: list[str], environment: dict[str, str]) -> float:
    """Run a command; return the CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def url_list(path: Path, port: int, count: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows((f"http://127.0.0.1:{port}/{row}.jpg", "") for row in range(count))


def theirs(urls: Path, output: Path, about: dict[str, object]) -> list[str]:
    options = {
        "url_list": str(urls), "output_folder": str(output), "processes_count": 1,
        "thread_count": THREADS, "input_format": "csv", "url_col": "url",
        "output_format": "webdataset", "compute_hash": "sha256", "enable_wandb": False,
        "extract_exif": False, "number_sample_per_shard": 10_000,
    }  # fmt: skip
    script = output.parent / "theirs.py"
    script.write_text(THEIRS)
    return [sys.executable, str(script), json.dumps(options | about)]


def ours(urls: Path, output: Path, about: dict[str, object]) -> list[str]:
    import pyarrow.csv
    import pyarrow.parquet

    table = output.parent / "urls.parquet"
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(urls), table)
    section = {"private_addresses": "allow", "requests_per_host": THREADS, **about}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in section.items()]
    return [
        sys.executable, "-m", "mlcd", "download", "--urls", str(table), "--output", str(output),
        "--processes", "1", "--threads", str(THREADS), *options,
    ]  # fmt: skip


def measure(kind: str, port: int, count: int, repeats: int, folder: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_ALBUMENTATIONS_UPDATE": "1",
        "OMP_NUM_THREADS": "1", "no_proxy": "*",
    }  # fmt: skip
    for mode, (plain, of_ours, *decoded) in MODES.items():
        contenders = {"img2dataset": (theirs, plain), "mlcd": (ours, of_ours)}
        if decoded:
            contenders["img2dataset, decoding"] = (theirs, decoded[0])
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, (command, about) in contenders.items():
                spent = []
                for rows in (count // 10, count):
                    work = folder / "work"
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir()
                    urls = work / "urls.csv"
                    url_list(urls, port, rows)
                    spent.append(cpu_of(command(urls, work / "out", about), environment))
                    tars = (work / "out").glob("*.tar")
                    held = sum(path.stat().st_size for path in tars)
                    assert held > rows * 1000, f"{name}: {held} bytes of {rows} images"
                times[name].append(1000 * (spent[1] - spent[0]) / (count - count // 10))
        first = statistics.median(times["img2dataset"])
        for name, found in times.items():
            middle = statistics.median(found)
            print(
                f"| {kind} | {mode} | {name} | {middle:.2f} ({min(found):.2f} to {max(found):.2f})"
                f" | {middle / first:.2f} |",
                flush=True,
            )
        peers = {"img2dataset": times["img2dataset"]}
        row = f"download, {mode}, {kind}, per image"
        goals.state(row, times["mlcd"], peers, 1.05, unit="CPU ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["photographs", "clip art", "noise"])
    arguments = parser.parse_args()
    print(machine.description(), end="\n\n")
    print("| images | stored | contender | CPU ms per image | times img2dataset |")
    print("|---|---|---|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        for kind in arguments.kinds:
            folder = Path(name, kind.replace(" ", "-"))
            images(kind, folder, 64)
            command = [sys.executable, __file__, "serve", str(folder)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                try:
                    port = int(server.stdout.readline())
                    measure(kind, port, arguments.images, arguments.repeats, Path(name))
                finally:
                    server.terminate()


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["serve"] else main()

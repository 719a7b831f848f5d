"""What the hashes cost: seconds of CPU, so that other programs on the machine do not count.

python benchmarks/hashes.py                     on the demo's images
python benchmarks/hashes.py --chunks 920 --tars 43     the look at all tars when planning
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from mlcd.data import undeclared
from mlcd.data.decode import decode
from mlcd.data.image_store import fingerprint
from mlcd.data.members import labeled_members
from mlcd.data.tars import digest_of
from mlcd.utils.records import write_record

_IMAGES = Path(__file__).parents[1] / "demo" / "openclipart.tar"


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the least seconds of CPU of a few repeats."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def of_images() -> None:
    """Print what the digest of an image costs beside decoding it."""
    images = [data for _, data, _ in labeled_members(_IMAGES)][:1000]
    size = sum(map(len, images))
    decoding = seconds(lambda: [decode(data, max_pixels=10**9) for data in images])
    digest = seconds(lambda: [digest_of(data) for data in images])
    print(f"{len(images)} images of {size / len(images) / 1000:.1f} kB on average")
    print(f"decoding {1e6 * decoding / len(images):.0f} µs per image")
    print(f"digest {1e6 * digest / len(images):.1f} µs per image: {digest / decoding:.2%} of it")
    block = bytes(1 << 26)
    for name, function in (("sha256", hashlib.sha256), ("crc32", zlib.crc32)):
        took = seconds(lambda function=function: function(block))  # type: ignore[misc]
        print(f"{name} {len(block) / took / 1e9:.2f} GB/s")


def of_planning(chunks: int, tars: int) -> None:
    """Print what the look at all tars costs."""
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for chunk in range(chunks):
            place = Path(folder) / f"c-{chunk:05d}"
            place.mkdir()
            names = [f"{number:05d}.tar" for number in range(tars)]
            for name in [*names, "rows.parquet"]:
                (place / name).touch()
            entry = {"sha256": "0" * 64, "bytes": 0, "images": 0}
            about = {
                "format": 1, "chunk": place.name, "rows": 0, "counts": {"success": 0},
                "tars": [{"name": name, **entry} for name in names], "table": "0" * 64,
            }  # fmt: skip
            write_record(place / "manifest.json", about | {"fingerprint": fingerprint(about)})
            records.append(str(place / "manifest.json"))
        seen = undeclared.Seen(Path(folder) / "seen.json")
        took = seconds(lambda: [undeclared.changed(record, seen) for record in records])
    print(f"{chunks} chunks of {tars} tars: {took:.2f} s of CPU")


def main() -> None:
    """Measure images, or planning where chunks are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=0)
    parser.add_argument("--tars", type=int, default=43)
    arguments = parser.parse_args()
    if arguments.chunks:
        of_planning(arguments.chunks, arguments.tars)
    else:
        of_images()


if __name__ == "__main__":
    main()

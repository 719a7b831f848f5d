"""Other libraries' way to a training's batches: each reads the same JPEGs from its own store.

    python benchmarks/readers.py NAME KIND COUNT      a pass for each line on standard input

:class:`Reader` runs that as a process of its own, since some need other versions than we do
(benchmarks/peers.py). It writes its store, makes one pass that does not count, and prints the CPU
milliseconds per image of each further pass: those of its own and of its one worker. Decoding is
Pillow's and the crops are torchvision's, bicubic, for everybody.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import mlcd.utils.compat  # noqa: F401  (before torchvision)

# isort: split
import jpegs
import peers
import torch
from torchvision import transforms

BATCH = 64
BICUBIC = transforms.InterpolationMode.BICUBIC


def webdataset_loader(path: Path, transform: Any, batch: int) -> Any:
    """Return webdataset's loader with one worker, as its documentation builds it."""
    import webdataset as wds

    dataset = (
        wds.WebDataset(str(path), shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(batch)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=1)


def from_webdataset(folder: Path, data: list[bytes], transform: Any) -> Iterable[Any]:
    """Write a tar; return batches of it."""
    jpegs.write_tar(folder / "00000.tar", data)
    return webdataset_loader(folder / "00000.tar", transform, BATCH)  # type: ignore[no-any-return]


def _cropped(data: bytes, transform: Any) -> torch.Tensor:
    import io

    from PIL import Image

    found: torch.Tensor = transform(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


def from_litdata(folder: Path, data: list[bytes], transform: Any) -> Iterable[Any]:
    """Write litdata's chunks of 64 MB; return batches of them."""
    from litdata.streaming import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for row, one in enumerate(data):
        writer.add_item(row, {"jpg": one})
    writer.done()
    writer.merge()

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> torch.Tensor:
            return _cropped(super().__getitem__(index)["jpg"], transform)

    dataset = Images(str(folder), shuffle=True)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1)  # type: ignore[no-any-return]


def from_streaming(folder: Path, data: list[bytes], transform: Any) -> Iterable[Any]:
    """Write MosaicML Streaming's shards of 64 MB; return batches of them."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=64 << 20) as writer:
        for one in data:
            writer.write({"jpg": one})

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> torch.Tensor:
            return _cropped(super().__getitem__(index)["jpg"], transform)

    dataset = Images(local=str(folder), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    return DataLoader(dataset, batch_size=BATCH, num_workers=1)


Maker = Callable[[Path, list[bytes], Any], Iterable[Any]]
READERS: dict[str, Maker] = {
    "webdataset": from_webdataset,
    "litdata": from_litdata,
    "mosaicml-streaming": from_streaming,
}


class Reader:
    """A process that makes a pass over `count` images of a kind for each call."""

    def __init__(self, name: str, kind: str, count: int) -> None:
        self._name = name
        words = [sys.executable, __file__, name, kind, str(count)]
        self._process = subprocess.Popen(
            words, env=peers.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._ask = partial(print, file=self._process.stdin, flush=True)

    def __call__(self) -> float:
        """Return the CPU seconds of one pass."""
        self._ask()
        if (told := self._told("seconds: ")) is None:
            raise SystemExit(f"benchmarks/readers.py {self._name} ended")
        return float(told)

    def ready(self) -> bool:
        """Wait for the first pass; False if the process ends before."""
        return self._told("ready") is not None

    def _told(self, what: str) -> str | None:
        """Return the rest of the next line that begins so, or None where there is none."""
        assert self._process.stdout is not None
        found = (line for line in self._process.stdout if line.startswith(what))
        line = next(found, None)
        return None if line is None else line.removeprefix(what)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def readers(kind: str, count: int) -> dict[str, Reader]:
    """Return a process for each reader that is there, and say which is not."""
    found = {}
    for name in READERS:
        if name in peers.NAMES and (reason := peers.missing()):
            print(f"{name} is left out: {reason}", flush=True)
            continue
        reader = Reader(name, kind, count)
        if reader.ready():
            found[name] = reader
        else:
            print(f"{name} is left out: its program failed, as said above", flush=True)
            reader.close()
    return found


def main() -> None:
    """Measure passes of one reader until standard input ends."""
    name, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        crops = jpegs.torchvision_crops(BICUBIC)
        batches = READERS[name](Path(folder), jpegs.jpegs(kind, count), crops)
        for warm in (True, False):
            for _ in [""] if warm else sys.stdin:
                start = jpegs.cpu_seconds()
                seen = sum(len(batch[0] if isinstance(batch, list | tuple) else batch)
                           for batch in batches)  # fmt: skip
                assert seen == count, f"{name}: {seen} of {count} images"
                print("ready" if warm else f"seconds: {jpegs.cpu_seconds() - start}", flush=True)


if __name__ == "__main__":
    main()

"""Compose scenes of one to five labeled objects, with boxes, masks and classes.

    apt-get download tuxpaint-data && dpkg-deb -x tuxpaint-data_*.deb unpacked
    python demo/scenes.py --output results/scenes/objects-2/data --objects 2 \\
        --grounds unpacked/usr/share/tuxpaint/templates

Objects are drawings of the demo's pack, each class a folder of the Open Clip Art Library. Grounds
are pieces of photographs (those of Debian's tuxpaint-data, GPL-2+, or any folder). Test scenes have
drawings and photographs of their own: of the pack's test split, which has no like in train, and a
quarter of the files. It writes

    images/NNNNN.png, masks/NNNNN.png    RGB, and the class of the object at each pixel, 0 for none
    objects.parquet    image, class, class_id (from 1), x0, y0, x1, y1 (pixels, half-open, of all of
                       an object's pixels), visible (share that no other object covers), draw
    split.parquet      image, split (train, test), ground, main (class of the object most seen)
    train.tar          the train images, for `metadata`
    evaluate.parquet   image (path), label (main), tags (classes), split, for `evaluate.datasets`
    manifest.json      seed, options, sources with their hashes and licenses, hash of all scenes

Equal sources, options and Pillow give equal bytes. A killed run is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import plain_png
import pyarrow as pa
import pyarrow.parquet as pq
from compose import CLASSES, Draws, Look, Scene, Sources, compose, read_grounds, read_stamps

from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.logging import progress, setup_logging
from mlcd.utils.ownership import PARQUET_KEY, claimed_folder
from mlcd.utils.records import read_record, write_record

GROUNDS = Path("/usr/share/tuxpaint/templates")
PACK = Path(__file__).parent / "openclipart.tar"
MANIFEST = "manifest.json"
_LICENSES = {
    "objects": "public domain (demo/LICENSE-images.md)",
    "grounds": "that of the photographs: GPL-2+ for Debian's tuxpaint-data",
}
_MOST_OBJECTS, _MOST_SIZE, _MOST_SCENES = 5, 512, 100_000
_OBJECTS = pa.schema(
    [("image", pa.string()), ("class", pa.string()), ("class_id", pa.int32()),
     *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1", "visible")),
     ("draw", pa.string())]
)  # fmt: skip


class Composed(NamedTuple):
    """A scene, its file's stem and its split."""

    stem: str
    split: str
    scene: Scene


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[1, 5], metavar="N",
        help="objects per scene: their number, or the least and the most [1 5]",
    )  # fmt: skip
    parser.add_argument("--train", type=int, default=4000, help="train scenes [4000]")
    parser.add_argument("--test", type=int, default=1000, help="test scenes [1000]")
    parser.add_argument("--size", type=int, default=64, help="side in pixels [64]")
    parser.add_argument(
        "--scale", type=float, nargs=2, default=[0.35, 0.5], metavar=("LOW", "HIGH"),
        help="longer side of an object, as share of the scene's [0.35 0.5]",
    )  # fmt: skip
    parser.add_argument(
        "--visible", type=float, default=0.75,
        help="least share of each object that others leave to see [0.75]",
    )  # fmt: skip
    parser.add_argument(
        "--contrast", type=float, default=0.5,
        help="contrast of grounds, as share of the photographs', so that objects stand out [0.5]",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--grounds", type=Path, default=GROUNDS, help=f"folder of photographs [{GROUNDS}]"
    )
    parser.add_argument("--pack", type=Path, default=PACK, help="the demo's tar")
    arguments = parser.parse_args()
    setup_logging()
    write(arguments)


def write(arguments: argparse.Namespace) -> None:
    """Write the folder, or see that it is there. Raises :class:`UserError`."""
    options = checked(arguments)
    manifest = arguments.output / MANIFEST
    # Scenes that are there may be asked for where the photographs are not.
    grounds = {}
    if arguments.grounds.is_dir() or not manifest.is_file():
        grounds = read_grounds(arguments.grounds)
    about = {
        "mlcd": "scenes",
        "version": 1,
        "options": options,
        "classes": list(CLASSES),
        "pillow": PIL.__version__,
        "licenses": _LICENSES,
        "pack": sha256_file(arguments.pack),
        "grounds": {
            split: {name: sha256_file(arguments.grounds / name) for name, _ in photos}
            for split, photos in grounds.items()
        },
    }
    if not grounds:
        del about["grounds"]
    if manifest.is_file():
        found = read_record(manifest, "demo/scenes.py")
        if {key: found.get(key) for key in about} != about:
            raise UserError(
                f"{arguments.output}: holds scenes of other options or sources; name another "
                "--output"
            )
        print(f"{arguments.output}: is there")
        return
    stamps = read_stamps(arguments.pack)
    sources = {split: Sources(stamps[split], grounds[split]) for split in ("train", "test")}
    with claimed_folder(arguments.output, [MANIFEST]) as folder:
        total = options["train"] + options["test"]
        hashed = _write_scenes(folder, scenes(options, sources), total)
        write_record(folder / MANIFEST, {**about, "scenes": hashed})
    print(f"{arguments.output}: {options['train']} train and {options['test']} test scenes")


def checked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide the scenes. Raises :class:`UserError` for impossible ones."""
    counts = arguments.objects
    if len(counts) > 2 or not 1 <= counts[0] <= counts[-1] <= _MOST_OBJECTS:
        raise UserError(f"--objects: expected one or two of 1 to {_MOST_OBJECTS}, the least first")
    for name, most in (("size", _MOST_SIZE), ("train", _MOST_SCENES), ("test", _MOST_SCENES)):
        if not 1 <= getattr(arguments, name) <= most:
            raise UserError(f"--{name}: expected 1 to {most}")
    low, high = (int(share * arguments.size) for share in arguments.scale)
    if not 4 <= low <= high <= arguments.size:
        raise UserError(
            f"--scale: objects of {low} to {high} of {arguments.size} pixels; expected at least "
            "4, and shares of at most 1, the smaller first"
        )
    if not 0 < arguments.visible <= 1:
        raise UserError("--visible: expected a share of more than 0 and at most 1")
    if not 0 <= arguments.contrast <= 1:
        raise UserError("--contrast: expected a share of 0 to 1")
    return {
        "seed": arguments.seed, "objects": [counts[0], counts[-1]], "train": arguments.train,
        "test": arguments.test, "size": arguments.size, "low": low, "high": high,
        "visible": arguments.visible, "contrast": round(256 * arguments.contrast),
    }  # fmt: skip


def scenes(options: dict[str, Any], sources: dict[str, Sources]) -> Iterator[Composed]:
    """Iterate over the train scenes, then the test scenes. Each depends on its number alone."""
    look = Look(*(options[name] for name in Look.__dataclass_fields__))
    fewest, most = options["objects"]
    for number in range(options["train"] + options["test"]):
        split = "train" if number < options["train"] else "test"
        place = number if split == "train" else number - options["train"]
        draws = Draws(f"scene {options['seed']} {split} {place}")
        count = draws.between(fewest, most)
        yield Composed(f"{number:05d}", split, compose(draws, sources[split], look, count))


def _write_scenes(folder: Path, found: Iterator[Composed], total: int) -> str:
    """Write images, masks, tables and tar; return the SHA-256 over all images and masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hashed = hashlib.sha256()
    objects: list[dict[str, Any]] = []
    splits: list[dict[str, Any]] = []
    labeled: list[dict[str, Any]] = []
    with (
        atomic_path(folder / "train.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for stem, split, scene in progress(found, total=total, label="scenes", unit="scene"):
            image, mask = plain_png.encode(scene.pixels), plain_png.encode(scene.mask)
            hashed.update(image + mask)
            # Not one by one to the disk: the manifest, written last, says that all are whole.
            (folder / "images" / f"{stem}.png").write_bytes(image)
            (folder / "masks" / f"{stem}.png").write_bytes(mask)
            if split == "train":
                member = tarfile.TarInfo(f"{stem}.png")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
            for item in scene.objects:
                x0, y0, x1, y1 = item.box
                objects.append(
                    {"image": stem, "class": CLASSES[item.number - 1], "class_id": item.number,
                     "x0": x0, "y0": y0, "x1": x1, "y1": y1,
                     "visible": np.float32(item.visible), "draw": item.key}
                )  # fmt: skip
            main = CLASSES[scene.main.number - 1]
            tags = sorted(CLASSES[item.number - 1] for item in scene.objects)
            splits.append({"image": stem, "split": split, "ground": scene.ground, "main": main})
            labeled.append(
                {"image": f"images/{stem}.png", "label": main, "tags": tags, "split": split}
            )
    _write_table(folder / "objects.parquet", pa.Table.from_pylist(objects, schema=_OBJECTS))
    _write_table(folder / "split.parquet", pa.Table.from_pylist(splits))
    _write_table(folder / "evaluate.parquet", pa.Table.from_pylist(labeled))
    return hashed.hexdigest()


def _write_table(path: Path, table: pa.Table) -> None:
    about = {PARQUET_KEY: json.dumps({"kind": f"scenes {path.stem}"})}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(about), temporary, compression="none")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"scenes: {error}")

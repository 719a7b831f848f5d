"""Build the demo's images from Debian's packages openclipart-png and openclipart-svg.

    apt-get download openclipart-png openclipart-svg
    for package in openclipart-*.deb; do dpkg-deb -x $package unpacked; done
    python demo/build_pack.py --root unpacked/usr/share/openclipart

Writes openclipart.tar (a webdataset: KEY.jpg beside KEY.json), metadata/openclipart-{a,b}.parquet
(URL lists of the images of the train split) and pack.json (what went in, what was left out and
why). Equal packages and an equal Pillow give equal bytes. Needs the project's environment.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops
from server import PORT, PREFIX
from split import assign_split, group_near

from mlcd.data.decode import BadImage, decode
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file, write_json
from mlcd.utils.logging import progress, setup_logging

#: Folders without images of things: icons and buttons, stars, flags, lamps, map signs, patterns.
LEFT_OUT = (
    "computer/buttons", "computer/icons", "shapes/stars", "signs_and_symbols/flags",
    "signs_and_symbols/led", "signs_and_symbols/map_symbols", "special/gradients",
    "special/patterns", "unsorted",
)  # fmt: skip
#: The only values of a file's license tag that are taken.
PUBLIC_DOMAIN = (
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
)

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_LONGER_SIDE = 128
_QUALITY = 85
# Fifteen files are posters of 40 to 620 million pixels, one of them a decompression bomb.
_MAX_PIXELS = 20_000_000
# Smaller drawings (a map sign of 3 × 2 pixels) show nothing.
_MIN_SIDE = 24
# Gray levels off white that count as drawn.
_INK = 12


def main() -> None:
    """Build the pack into the folder of this script, or into --output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        help="the packages' unpacked folder usr/share/openclipart",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    setup_logging()
    try:
        build(arguments.root, arguments.output)
    except UserError as error:
        sys.exit(f"build_pack: {error}")


def build(root: Path, output: Path) -> None:
    """Read the packages under `root` and write the pack into `output`. Raises UserError."""
    if not (root / "png").is_dir() or not (root / "svg").is_dir():
        raise UserError(
            f"{root}: holds no png/ and svg/; unpack both packages and give that folder"
        )
    images, counts = collect(root)
    groups = group_near(images)
    assign_split(images, groups)
    images.sort(key=lambda image: image["key"])
    write_tar(output / "openclipart.tar", images)
    train = [image for image in images if image["fields"]["split"] == "train"]
    # Keys are hashes, so both halves mix all folders.
    half = -(-len(train) // 2)
    write_list(output / "metadata" / "openclipart-a.parquet", train[:half])
    write_list(output / "metadata" / "openclipart-b.parquet", train[half:])
    classes: dict[str, Counter[str]] = {}
    for image in sorted(images, key=lambda image: image["fields"]["folder"]):
        fields = image["fields"]
        classes.setdefault(fields["folder"], Counter(train=0, test=0))[fields["split"]] += 1
    splits = Counter(image["fields"]["split"] for image in images)
    summary = {
        "images": len(images),
        "train": splits["train"],
        "test": splits["test"],
        "groups": len(set(groups)),
        "left_out": dict(sorted(counts.items())),
        "sha256": sha256_file(output / "openclipart.tar"),
        "classes": {name: dict(split) for name, split in classes.items()},
    }
    write_json(output / "pack.json", summary)
    print(json.dumps({**summary, "classes": len(classes)}, indent=1))


def collect(root: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the images in the order of their paths, and counts of what was left out and why.

    An image is `{"key", "jpeg", "names", "fields"}`; `names` are the titles that mark a series.
    """
    counts: Counter[str] = Counter()
    images: list[dict[str, Any]] = []
    contents: dict[str, str] = {}
    # Links are the packages' own duplicates. Deep folders first: of two equal images the one in
    # the narrower folder stays.
    paths = [path for path in (root / "png").rglob("*.png") if not path.is_symlink()]
    paths.sort(key=lambda path: (-len(path.parts), path.as_posix()))
    for path in progress(paths, label="images", unit="images"):
        source = path.relative_to(root / "png")
        if source.as_posix().startswith(tuple(f"{folder}/" for folder in LEFT_OUT)):
            counts["folder"] += 1
            continue
        about = read_metadata(root / "svg" / source.with_suffix(".svg"))
        if about["license"] not in PUBLIC_DOMAIN:
            counts["license_empty" if not about["license"] else "license_other"] += 1
            continue
        try:
            jpeg, content = shrink(path.read_bytes())
        except BadImage as error:
            counts[error.reason] += 1
            continue
        if content in contents:
            counts["duplicate"] += 1
            continue
        contents[content] = source.as_posix()
        title = clean_title(about["title"], source.stem)
        fields = {
            "title": title,
            "description": clean_description(about["description"]),
            "tags": clean_tags(about["tags"], about["authors"]),
            "folder": "/".join(source.parts[:-1][:2]),
            "top": source.parts[0],
            "split": "train",
            "source": source.with_suffix("").as_posix(),
        }
        images.append(
            {
                "key": hashlib.sha256(fields["source"].encode()).hexdigest()[:12],
                "jpeg": jpeg,
                "names": {series_name(title), series_name(about["title"])} - {""},
                "fields": fields,
            }
        )
    images.sort(key=lambda image: image["fields"]["source"])
    return images, counts


def read_metadata(path: Path) -> dict[str, Any]:
    """Return license, title, description, tags and authors from the RDF at the head of an SVG."""
    for _, element in ElementTree.iterparse(path, events=("end",)):
        if not element.tag.endswith("}Work"):
            continue
        licenses = [child for child in element if child.tag.endswith("}license")]
        return {
            "license": "".join(child.get(f"{_RDF}resource", "") for child in licenses),
            "title": _words(element.findtext(f"{_DC}title")),
            "description": _words(element.findtext(f"{_DC}description")),
            "tags": [item.text for item in element.findall(f"{_DC}subject/{_RDF}Bag/{_RDF}li")],
            "authors": {
                _words(name.text).lower()
                for role in ("creator", "publisher", "rights")
                for name in element.findall(f"{_DC}{role}/*/{_DC}title")
            },
        }
    return {"license": "", "title": "", "description": "", "tags": [], "authors": set()}


def shrink(data: bytes) -> tuple[bytes, str]:
    """Return the drawing as a JPEG of at most 128 pixels per side, and the hash of its pixels.

    Many drawings are small on a large empty page: the page is cut off. Raises
    :class:`mlcd.data.decode.BadImage`, also for an empty page (``blank``) and a tiny one
    (``tiny``).
    """
    image = decode(data, max_pixels=_MAX_PIXELS)
    white = Image.new("RGB", image.size, "white")
    ink = ImageChops.difference(image, white).convert("L").point(lambda level: 255 * (level > _INK))
    box = ink.getbbox()
    if box is None:
        raise BadImage("blank", "nothing is drawn")
    image = image.crop(box)
    if max(image.size) < _MIN_SIDE:
        raise BadImage("tiny", f"{image.width} × {image.height}")
    content = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    scale = min(1.0, _LONGER_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=_QUALITY, optimize=True
    )
    return buffer.getvalue(), content


def clean_title(title: str, stem: str) -> str:
    """Return the title, or words of the file name where the title is empty or of another image.

    One author's tool wrote the title of his first image into whole series: "Clipart by …".
    """
    if not title or title.lower().startswith("clipart by"):
        title = re.sub(r"[\W\d_]+", " ", stem).strip() or stem
    return title


def clean_description(text: str) -> str:
    """Return the description, or nothing where it is a mail address."""
    return "" if "@" in text else text


def clean_tags(tags: list[str | None], authors: set[str]) -> list[str]:
    """Return the tags in lower case, sorted, without debris of tools, numbers and author names."""
    words = {_words(tag).lower().replace("_", " ") for tag in tags}
    debris = re.compile(r"hash(\(.*\))?|0x[0-9a-f]+|unsorted|[\W\d]*")
    return sorted(
        word for word in words - authors if word.isprintable() and not debris.fullmatch(word)
    )


def series_name(title: str) -> str:
    """Return a title without case, numbers and marks: equal for the images of a series."""
    return re.sub(r"[\W\d_]+", " ", title.lower()).strip()


def caption(fields: dict[str, Any]) -> str:
    """Return title, description and tags as sentences."""
    sentences = [fields["title"].rstrip(".")]
    if fields["description"].lower() not in ("", fields["title"].lower()):
        sentences.append(fields["description"].rstrip("."))
    tags = fields["tags"]
    listed = " and ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)
    sentences.append(f"Clip art of {listed}" if tags else "Clip art")
    return ". ".join(sentences) + "."


def write_tar(path: Path, images: list[dict[str, Any]]) -> None:
    """Write the webdataset: USTAR, owner 0, time 0, in the order of keys."""
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for image in images:
            text = json.dumps(image["fields"], ensure_ascii=False, separators=(",", ":"))
            for ending, data in (("jpg", image["jpeg"]), ("json", text.encode())):
                member = tarfile.TarInfo(f"{image['key']}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_list(path: Path, images: list[dict[str, Any]]) -> None:
    """Write a URL list: url, caption, sha256 of the image's bytes."""
    table = pa.table(
        {
            "url": [f"http://127.0.0.1:{PORT}{PREFIX}{image['key']}.jpg" for image in images],
            "caption": [caption(image["fields"]) for image in images],
            "sha256": [hashlib.sha256(image["jpeg"]).hexdigest() for image in images],
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    main()

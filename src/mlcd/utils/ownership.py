"""What mlcd wrote, and what it therefore may replace: nothing else is ever overwritten or removed.

Every command calls :func:`claim` with the files that it is going to write, before any work. A file
that is there already must show that mlcd wrote it, in a way that survives copying a folder:

- HDF5: the attributes `kind` and `fingerprint`; parquet: the key `mlcd` of the file's metadata
- JSON and JSON lines: the fields of one of our kinds (:data:`_FIELDS`, :data:`_LINES`)
- CSV: the header of one of our tables; HTML, SVG, PNG, PDF and Markdown: our name as the generator
- tars of a chunk: members without owner and time, each image followed by our JSON; an index by its
  first line
- safetensors, whose bytes are the weights and nothing else: our description beside them, or the
  state folder of the run that was writing them

Empty files may be replaced: there is nothing to lose.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.files import checked_folder, checked_target

#: The key of a parquet file's metadata; its value says what the file is.
PARQUET_KEY = "mlcd"
#: Lines that say it in text formats.
HTML_MARK = '<meta name="generator" content="mlcd">'
MARKDOWN_MARK = "<!-- written by mlcd -->"
#: What charts are told about their maker, by format.
CHART_MARK = {"svg": {"Creator": "mlcd"}, "png": {"Software": "mlcd"}, "pdf": {"Creator": "mlcd"}}
#: Fields by which the objects in our JSON files are known.
_FIELDS = tuple(
    frozenset(fields.split())
    for fields in (
        "format chunk tars fingerprint",  # the manifest of a chunk of images
        "chunk source start stop counts",  # the counts of a chunk of URLs
        "model embedding_dim image_size sha256",  # an encoder
        "vocabulary embedding_dim sha256",  # a text tower
        "file sha256 width embedding_dim",  # a region layer in an export
        "model seed datasets",  # scores
        "part model dataset scores",  # scores of one part of the stage evaluate
        "images texts scores",  # scores of image-text retrieval
        "images num_classes labels_per_image",  # the summary of labels
        "images kept left_out",  # the summary of a curation
        "words images_with_words distinct_words",  # the vocabulary of read words
        "format encoder_sha256 largest_difference",  # an export
        "mlcd",  # numbers of the report, a listing of images on disk
    )
)
#: Fields by which the lines of our JSON lines are known.
_LINES = (
    frozenset({"step", "loss"}), frozenset({"iteration", "objective"}),
    frozenset({"step", "dataset", "chance"}),  # live scores
)  # fmt: skip
#: Headers of our CSV files begin so.
_HEADERS = (
    "model,dataset,metric,", "name,loss,l,r,K,", "first,second,factor,", "rule,wildcards,slurm_id,",
)  # fmt: skip
_HEAD = 1 << 16
#: Weights that another file's description names: those of a region layer.
_DESCRIBED_AS = {"regions": "encoder"}
#: Fields of the JSON that follows each image in a tar of ours.
_TAR_FIELDS = frozenset(["key", "url", "caption", "sha256", "width", "height"])


def claim(*paths: str | os.PathLike[str]) -> None:
    """Refuse what is there and is not ours. Raises :class:`UserError`, which names the file.

    Also for a folder or a device in a file's place, and for a file in a folder's; and for a disk
    that takes no more, or may only be read.
    """
    for path in paths:
        target = checked_target(path)
        if target.exists() and not is_ours(target):
            raise foreign(path)
    disk.check_writable(*map(checked_target, paths))


def foreign(path: str | os.PathLike[str]) -> UserError:
    """Return the error for a file that mlcd did not write."""
    return UserError(
        f"{path}: is there and was not written by mlcd, which never replaces it; "
        "name another output, or move the file away"
    )


@contextlib.contextmanager
def claimed_folder(
    folder: str | os.PathLike[str], witnesses: Sequence[str], names: str = "[^.].*"
) -> Iterator[Path]:
    """Refuse a folder with files of others' under `names` (a regular expression), as we write them.

    It is ours if a file called as one of `witnesses` is there, and all of these that are there are
    ours. Inside the block a mark in the state folder beside it says that it is being written, so
    that what a killed run left is known. It stays after a failure only where files lie in the
    folder that nothing else shows to be ours. Raises :class:`UserError`.
    """
    target = checked_folder(folder)
    mark = target.parent / "state" / f"{target.name}.writing"
    found = [target / name for name in witnesses if (target / name).exists()]
    for path in found:
        if not is_ours(path):
            raise foreign(path)
    if target.is_dir() and not found and not mark.exists():
        for entry in sorted(target.iterdir()):
            # Snakemake removes the witnesses before an attempt, and not what they tell of.
            if re.fullmatch(names, entry.name) and not is_ours(entry):
                raise foreign(entry)
    while True:
        with disk.writing(target):
            mark.parent.mkdir(parents=True, exist_ok=True)
            # A job that writes beside this one may end, and remove the folder, right in between.
            with contextlib.suppress(FileNotFoundError):
                mark.touch()
                break
    try:
        disk.check_folder(target)
        yield target
    except BaseException:
        if not _needs_mark(target, witnesses, names):
            _unmark(mark)
        raise
    _unmark(mark)


def _needs_mark(folder: Path, witnesses: Sequence[str], names: str) -> bool:
    """True if files lie in `folder` under `names`, and no witness is among them."""
    if any((folder / name).exists() for name in witnesses) or not folder.is_dir():
        return False
    return any(re.fullmatch(names, entry.name) for entry in folder.iterdir())


def _unmark(mark: Path) -> None:
    with contextlib.suppress(OSError):
        mark.unlink(missing_ok=True)
        mark.parent.rmdir()


def is_ours(path: Path) -> bool:
    """True if mlcd wrote this file, or nothing is in it."""
    try:
        if path.stat().st_size == 0:
            return True
        check = _CHECKS.get(path.suffix.lower())
        return check is not None and check(path)
    # The last two: JSON of another shape, and JSON that is nested without end.
    except (OSError, ValueError, KeyError, tarfile.TarError, TypeError, RecursionError):
        return False


def _hdf5(path: Path) -> bool:
    import h5py

    with h5py.File(path, "r") as file:
        return {"kind", "fingerprint"} <= set(file.attrs)


def _parquet(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return PARQUET_KEY.encode() in (pq.read_schema(path).metadata or {})
    except pa.ArrowException:
        return False


def _json(path: Path) -> bool:
    value = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(value, dict) and any(fields <= set(value) for fields in _FIELDS)


def _json_lines(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        value: Any = json.loads(file.readline(_HEAD))
    return isinstance(value, dict) and any(fields <= set(value) for fields in _LINES)


def _csv(path: Path) -> bool:
    return _head(path).decode("utf-8", "replace").startswith(_HEADERS)


def _mentions(*marks: str) -> Callable[[Path], bool]:
    def check(path: Path) -> bool:
        head = _head(path)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _HEAD))
            tail = file.read()
        return any(mark.encode() in part for mark in marks for part in (head, tail))

    return check


def _index(path: Path) -> bool:
    return _head(path).startswith(b'{"mlcd":"index"')


def _safetensors(path: Path) -> bool:
    stem = _DESCRIBED_AS.get(path.stem, path.stem)
    for description in (path.with_suffix(".json"), path.with_name(f"{stem}.json")):
        if description.is_file() and is_ours(description):
            return True
    state = path.parent / "state"
    pattern = re.compile(re.escape(stem) + r"-[0-9a-f]{16}")
    return state.is_dir() and any(pattern.fullmatch(entry.name) for entry in state.iterdir())


def _tar(path: Path) -> bool:
    """True for a tar of stage download, which may have no member; only its first two are read."""
    with tarfile.open(path, "r:") as tar:
        first, second = tar.next(), tar.next()
        if first is None or second is None:
            return first is None and path.stat().st_size <= tarfile.RECORDSIZE
        handle = tar.extractfile(second)
        if handle is None or first.mtime or second.mtime:
            return False
        fields = json.loads(handle.read(_HEAD))
        return (
            set(fields) - {"class"} == _TAR_FIELDS and re.match(r"\d{9}\.", first.name) is not None
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


_CHECKS: dict[str, Callable[[Path], bool]] = {
    ".h5": _hdf5,
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json_lines,
    ".tar": _tar,
    ".index": _index,
    ".csv": _csv,
    ".html": _mentions(HTML_MARK),
    ".svg": _mentions("<dc:title>mlcd</dc:title>"),
    ".png": _mentions("Software\0mlcd"),
    ".pdf": _mentions("/Creator (mlcd)"),
    ".md": _mentions(MARKDOWN_MARK),
    ".safetensors": _safetensors,
}

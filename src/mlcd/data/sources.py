"""What the config key `metadata` names: URL lists, and images that are on disk already.

Asked whenever the Snakefile is read: of lists only footers and headers, of local images only what
:mod:`.listing` says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlcd.config.prepare import Prepare
from mlcd.data import url_lists
from mlcd.data.containers import image_column
from mlcd.data.listing import LocalSource, chunks_of, kept
from mlcd.data.members import IMAGES, ending_of
from mlcd.data.url_lists import MOST_CHUNKS, Chunk, chunk_name
from mlcd.utils.errors import UserError

#: Endings of compressed tars, which have no place that an image could be read at.
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def plan(
    metadata: Sequence[str],
    section: Prepare,
    listings: str | os.PathLike[str],
    *,
    look: bool = True,
) -> dict[str, Chunk]:
    """Return chunk name → :class:`Chunk`: those of lists, then those of local images.

    Listings of local images are kept in the folder `listings`; a chunk of them has its listing as
    `list`. `look` as in :func:`.listing.kept`. Raises :class:`UserError` as
    :func:`.url_lists.plan` and for images that are not there.
    """
    lists, sources = split(metadata, section)
    chunks = url_lists.plan(lists, section.chunk_rows, section.columns()) if lists else {}
    for source in sources:
        found = kept(source, section, Path(listings), look=look)
        runs = chunks_of(found.images, section.chunk_rows)
        if len(runs) > MOST_CHUNKS:
            raise UserError(
                f"{source.root}: {found.images} images make more than {MOST_CHUNKS} chunks of "
                f"{section.chunk_rows}; raise prepare.chunk_rows"
            )
        for part, (run, identity) in enumerate(zip(runs, found.identities, strict=True)):
            name = chunk_name(found.path, part)
            if name in chunks:
                raise UserError(
                    f"{source.places[0]}: its chunks would be named like those of "
                    f"{chunks[name].list}; rename one of the two, or name it by a link"
                )
            chunks[name] = Chunk(str(found.path), part, len(run), identity)
    return chunks


def split(metadata: Sequence[str], section: Prepare) -> tuple[list[str], list[LocalSource]]:
    """Return the URL lists that `metadata` names, and the sources of local images.

    An entry with patterns is one source. Raises :class:`UserError` if nothing is called so, or two
    sources have the same name.
    """
    lists: list[str] = []
    sources: dict[str, LocalSource] = {}
    for entry in metadata:
        places: list[str] = []
        for path, is_local in _sorted_out(entry, section):
            (places if is_local else lists).append(path)
        if places:
            source = _source(places, one=places == [entry])
            if source.name in sources:
                raise UserError(
                    f"{entry}: chunks are named after folders and files, and those of "
                    f"{sources[source.name].places[0]} are called {source.name} too; rename one of "
                    "the two, or name it by a link"
                )
            sources[source.name] = source
    return lists, list(sources.values())


def _sorted_out(entry: str, section: Prepare) -> Iterator[tuple[str, bool]]:
    """Iterate over what an entry names, in order, and whether it is images on disk."""
    # A folder may be called "scans [2024]".
    paths = [entry] if Path(entry).exists() else url_lists.expand_lists([entry])
    with ThreadPoolExecutor(8) as pool:
        yield from zip(paths, pool.map(lambda path: is_local(path, section), paths), strict=True)


def is_local(path: str, section: Prepare) -> bool:
    """True for images on disk, False for a URL list. Raises UserError for a compressed tar."""
    place = Path(path)
    if place.is_dir():
        return True
    name = place.name.lower()
    if name.endswith(_COMPRESSED):
        raise UserError(
            f"{path}: is compressed, and images are read from tars by their place; unpack it to a "
            "plain .tar, or to a folder"
        )
    ending = ending_of(name)
    if ending in IMAGES or ending in ("tar", "zip"):
        if not place.exists():
            raise UserError(f"{path}: no such file; check the config key metadata")
        return True
    if ending == "parquet" and place.is_file():
        schema = url_lists.open_parquet(path).schema_arrow
        return image_column(schema, section.image_column) is not None
    return False


def _source(places: Sequence[str], *, one: bool) -> LocalSource:
    """Return the source of an entry's places.

    It is named after `one` place, of a pattern after the folder that its places share: there may be
    more of them later.
    """
    # Not resolved: a link may be set to where the images have moved.
    found = tuple(os.path.abspath(place) for place in places)  # noqa: PTH100
    first = Path(found[0])
    if one:
        root = first if first.is_dir() else first.parent
        name = first.name if first.is_dir() else first.name.split(".")[0]
    else:
        root = Path(os.path.commonpath([Path(place).parent for place in found]))
        name = root.name
    # Chunk names become file names, wildcards and words of shell commands.
    safe = re.sub(r"[^A-Za-z0-9_+=@-]+", "_", name).lstrip("+=@-") or "images"
    return LocalSource(safe, str(root), found)

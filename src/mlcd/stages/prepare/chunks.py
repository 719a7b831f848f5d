"""Clean rows of a URL list and write them as a chunk: docs/reference/formats.md, results/urls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlcd.config.prepare import Prepare
from mlcd.stages.prepare.lists import Row
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.ownership import PARQUET_KEY
from mlcd.utils.records import write_record

#: Why a row is refused, in the order of the checks. Their counts and `kept` add up to the rows.
REASONS = ("no_url", "bad_scheme", "bad_url", "credentials", "bad_hash", "duplicate")
#: What is said of rows that are kept all the same.
NOTES = ("caption_missing", "caption_not_utf8", "hash_missing")

_SCHEME = re.compile(r"https?:", re.IGNORECASE)
_URL = re.compile(r"https?://[^/?#\s][^\x00-\x1f\x7f]*", re.IGNORECASE)
#: A user or password before the host; it would be kept in every table.
_CREDENTIALS = re.compile(r"https?://[^/?#]*@", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{64}")
_GROUP_ROWS = 1 << 16


class _Refused(Exception):
    """A row that is not kept; its only argument is one of :data:`REASONS`."""


def write_chunk(
    output: Path,
    rows: Iterable[Row],
    section: Prepare,
    *,
    source: str,
    identity: str,
    start: int,
    stop: int,
) -> Counter[str]:
    """Write `output` (a parquet file) and the JSON beside it; return the counts by reason.

    `rows` are rows [start, stop) of the list `source`: url, caption, hash as bytes. `identity` is
    of the list, and stands in the JSON. Equal rows give equal bytes. Raises :class:`UserError` if
    no row is usable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter(dict.fromkeys(("kept", *REASONS), 0))
    notes: Counter[str] = Counter(dict.fromkeys(NOTES, 0))
    schema = pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
            pa.field("caption", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
        ],
        metadata={PARQUET_KEY: "urls"},
    )
    with atomic_path(output) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(_kept(rows, section, counts, notes)):
                writer.write_table(pa.table(group, schema=schema))
        if counts["kept"] == 0:
            table = ", ".join(f"{reason} {counts[reason]}" for reason in REASONS)
            raise UserError(
                f"{source}: none of the rows {start} to {stop - 1} can be used ({table}); "
                "check prepare.url_column and prepare.hash_column"
            )
    description: dict[str, Any] = {
        "chunk": output.stem,
        "source": source,
        "list": identity,
        "start": start,
        "stop": stop,
        "rows": counts["kept"],
        "counts": dict(counts),
        "notes": dict(notes),
        "table": sha256_file(output),
    }
    write_record(output.with_suffix(".json"), description)
    return counts


def _kept(
    rows: Iterable[Row], section: Prepare, counts: Counter[str], notes: Counter[str]
) -> Iterator[tuple[str, str, str]]:
    """Iterate over the kept rows as url, caption, hash; count the others by reason."""
    seen: set[str] = set()
    for raw_url, raw_caption, raw_hash in rows:
        try:
            url = _clean_url(raw_url)
            digest = _clean_hash(raw_hash)
            if url in seen:
                raise _Refused("duplicate")
        except _Refused as refused:
            counts[str(refused)] += 1
            continue
        seen.add(url)
        counts["kept"] += 1
        if section.hash_column is not None and not digest:
            notes["hash_missing"] += 1
        yield url, _clean_caption(raw_caption, notes), digest


def _groups(kept: Iterable[tuple[str, str, str]]) -> Iterator[dict[str, list[Any]]]:
    """Gather rows into columns of a row group each, and number them."""
    first = 0
    group: dict[str, list[Any]] = {"row": [], "url": [], "caption": [], "sha256": []}
    for values in kept:
        for column, value in zip(("url", "caption", "sha256"), values, strict=True):
            group[column].append(value)
        if len(group["url"]) == _GROUP_ROWS:
            yield {**group, "row": list(range(first, first + _GROUP_ROWS))}
            first += _GROUP_ROWS
            group = {name: [] for name in group}
    if group["url"]:
        yield {**group, "row": list(range(first, first + len(group["url"])))}


def _clean_url(raw: bytes | None) -> str:
    """Return the URL without blanks around it. Only http and https with a host are kept."""
    raw = (raw or b"").strip()
    if not raw:
        raise _Refused("no_url")
    try:
        url = raw.decode("utf-8")
    except UnicodeDecodeError:
        # A replaced byte would make it another URL.
        raise _Refused("bad_url") from None
    if not _SCHEME.match(url):
        raise _Refused("bad_scheme")
    if not _URL.fullmatch(url):
        raise _Refused("bad_url")
    if _CREDENTIALS.match(url):
        raise _Refused("credentials")
    return url


def _clean_hash(raw: bytes | None) -> str:
    """Return the hash as 64 lower hex digits, or empty if the row has none.

    Raw digests of 32 bytes and a prefix `sha256:` are read too. A row whose hash is anything else
    is refused: it could never be verified.
    """
    if not raw:
        return ""
    # 32 bytes that are all text are an MD5 in hex, not a digest (chance 10⁻¹⁴).
    if len(raw) == 32 and not all(0x20 <= byte < 0x7F for byte in raw):
        return raw.hex()
    text = raw.decode("ascii", "replace").strip().lower().removeprefix("sha256:")
    if text and not _HASH.fullmatch(text):
        raise _Refused("bad_hash")
    return text


def _clean_caption(raw: bytes | None, notes: Counter[str]) -> str:
    """Return the caption as UTF-8 of any length; bytes that are not UTF-8 become U+FFFD."""
    if not raw or not raw.strip():
        notes["caption_missing"] += 1
        return ""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        notes["caption_not_utf8"] += 1
        return raw.decode("utf-8", "replace")

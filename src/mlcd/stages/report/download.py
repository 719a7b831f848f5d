"""Part `download`: outcomes by reason and chunk, from the manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.data.image_store import read_manifest
from mlcd.stages.report.page import Drawing, render, table
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.units import decimal_size

#: Bars with names up to here; more chunks are drawn as a band without names.
_NAMED = 32
#: Reasons with a color of their own; the rarer ones are drawn together.
_REASONS = 6
_ROWS = 40


def draw(section: Report, images: Sequence[str]) -> Drawing:
    """Draw what arrived, from `images` (paths of manifest.json)."""
    chunks = sorted((_read(path) for path in images), key=lambda chunk: chunk["chunk"])
    totals: Counter[str] = Counter()
    for chunk in chunks:
        totals.update(chunk["counts"])
    rows = sum(chunk["rows"] for chunk in chunks)
    arrived = totals.pop("success", 0)
    reasons = [reason for reason, count in totals.most_common() if count]
    share = f" ({arrived / rows:.1%})" if rows else ""
    size = sum(chunk["bytes"] for chunk in chunks)
    title = f"{arrived:,} of {rows:,} images arrived{share}"
    lead = (
        f"{len(chunks):,} chunks, {sum(chunk['tars'] for chunk in chunks):,} tars, "
        f"{decimal_size(size)}. "
        + (f"Most frequent failure: {reasons[0]}." if reasons else "No row failed.")
    )
    by_reason = [("success", f"{arrived:,}", _percent(arrived, rows))]
    by_reason += [
        (reason, f"{totals[reason]:,}", _percent(totals[reason], rows)) for reason in reasons
    ]
    heading, shown = _chunk_table(chunks, (rows, arrived, size))
    body = render(
        "download.html",
        outcomes=table(["outcome", "rows", "share"], by_reason, numbers=(1, 2)),
        heading=heading,
        chunks=shown,
    )
    with charts.style():
        chart = _chart(chunks, reasons)
    return Drawing(title, lead, body, chart)


def _read(path: str) -> dict[str, Any]:
    manifest = read_manifest(path)
    try:
        return {
            "chunk": str(manifest["chunk"]),
            "rows": int(manifest["rows"]),
            "counts": {str(reason): int(n) for reason, n in manifest["counts"].items()},
            "tars": len(manifest["tars"]),
            "bytes": sum(int(tar["bytes"]) for tar in manifest["tars"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not a manifest of the stage download; rerun it") from None


def _percent(count: int, of: int) -> str:
    return f"{count / of:.2%}" if of else "–"


def _chunk_table(chunks: list[dict[str, Any]], totals: tuple[int, int, int]) -> tuple[str, Markup]:
    """Return heading and table of all chunks; of many, of those with the least success."""
    heading = "By chunk"
    if len(chunks) > _ROWS:
        heading = f"The {_ROWS} of {len(chunks)} chunks with the least success"
        order = sorted(chunks, key=lambda c: (_arrived(c) / max(1, c["rows"]), c["chunk"]))
        chunks = order[:_ROWS]
    rows = [
        (
            chunk["chunk"],
            f"{chunk['rows']:,}",
            f"{_arrived(chunk):,}",
            _percent(_arrived(chunk), chunk["rows"]),
            decimal_size(chunk["bytes"]),
        )
        for chunk in chunks
    ]
    asked, arrived, size = totals
    rows.append(("all", f"{asked:,}", f"{arrived:,}", _percent(arrived, asked), decimal_size(size)))
    columns = ["chunk", "rows", "arrived", "share", "bytes"]
    return heading, table(columns, rows, numbers=(1, 2, 3, 4), total=True)


def _arrived(chunk: dict[str, Any]) -> int:
    count: int = chunk["counts"].get("success", 0)
    return count


def _chart(chunks: list[dict[str, Any]], reasons: list[str]) -> Figure:
    """Stack the rows of each chunk by outcome."""
    shown = reasons[:_REASONS]
    series = [("success", charts.BLUE, ["success"])]
    colors = (charts.RED, charts.ORANGE, charts.PURPLE, charts.SKY, charts.OLIVE, charts.GREEN)
    series += [(r, color, [r]) for r, color in zip(shown, colors, strict=False)]
    if reasons[_REASONS:]:
        series.append(("other reasons", charts.GRAY, reasons[_REASONS:]))
    counts = np.array(
        [[sum(c["counts"].get(r, 0) for r in group) for c in chunks] for _, _, group in series],
        dtype=float,
    )
    named = len(chunks) <= _NAMED
    chart = charts.figure(height=max(2.2, 0.9 + 0.3 * len(chunks)) if named else 3.6)
    axes = chart.subplots()
    places = np.arange(len(chunks))
    base = np.zeros(len(chunks))
    for (label, color, _), values in zip(series, counts, strict=True):
        if named:
            bars = axes.barh(places, values, left=base, height=0.7, color=color, label=label)
            words = [
                (chunk["chunk"], f"{label}: {value:,.0f} of {chunk['rows']:,} rows")
                for chunk, value in zip(chunks, values, strict=True)
            ]
            charts.note_bars(axes, bars, words)
        else:
            axes.bar(places, values, bottom=base, width=1.0, color=color, label=label)
        base += values
    if named:
        axes.set_yticks(places, [chunk["chunk"] for chunk in chunks])
        axes.invert_yaxis()
        axes.set_xlabel("rows")
        axes.xaxis.set_major_formatter(lambda value, _: charts.thousands(value))
        charts.grid_only(axes, "x")
    else:
        axes.set_xlabel("chunk, in the order of names")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_formatter(lambda value, _: charts.thousands(value))
        axes.set_xlim(-0.5, len(chunks) - 0.5)
        charts.grid_only(axes, "y")
    chart.legend(loc="outside upper left", ncols=min(4, len(series)))
    return chart

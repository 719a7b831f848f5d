"""`mlcd explore RESULTS --export FOLDER --clusters …`: chosen clusters as pages that need nothing.

Each page holds its style and its images. No script runs, nothing is fetched, every word is escaped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mlcd.commands.explore.answers import Answers
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.commands.explore.images import Thumbnails, why_not
from mlcd.commands.explore.index import Index
from mlcd.commands.explore.runs import Run
from mlcd.data.decode import BadImage
from mlcd.stages.report.page import data_uri
from mlcd.utils import templates
from mlcd.utils.errors import UserError
from mlcd.utils.files import checked_folder, write_text
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

#: Pixels of the longer side of an image, and of one that stands for a cluster.
_SIDE, _COVER = 240, 112


def parse_clusters(words: Sequence[str], k: int) -> list[int]:
    """Return the numbers that `3 17 200-300` names, rising. Raises :class:`UserError`.

    `k` is the number of clusters: each must be below.
    """
    chosen: set[int] = set()
    for word in words:
        found = re.fullmatch("([0-9]{1,12})(?:-([0-9]{1,12}))?", word)
        if not found:
            raise UserError(f"--clusters: {word!r} is no cluster and no range; write 17 or 200-300")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last >= k:
            raise UserError(f"--clusters: {word}: the clusters are 0 to {k - 1}, and ranges rise")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def export(
    run: Run, index: Index, folder: Path, clusters: Sequence[int], *, images: int, max_pixels: int
) -> None:
    """Write `index.html` and a page per cluster, with `images` images each at most.

    Raises :class:`UserError`, before any work, for a file in its way that mlcd did not write.
    """
    checked_folder(folder)
    paths = {cluster: folder / f"cluster-{cluster}.html" for cluster in clusters}
    claim(folder / "index.html", *paths.values())
    encoder = QueryEncoder(run, None, device="cpu", threads=0, max_pixels=max_pixels)
    thumbnails = Thumbnails(run, index, max_pixels)
    writer = _Pages(run, Answers(run, index, encoder), thumbnails, set(clusters))
    cards = []
    for cluster in progress(clusters, label="export", unit="cluster"):
        page, card = writer.page(cluster, images)
        write_text(paths[cluster], page)
        cards.append(card)
    write_text(folder / "index.html", writer.contents(cards))
    LOGGER.info("%s: %d clusters", folder / "index.html", len(clusters))


class _Pages:
    def __init__(
        self, run: Run, answers: Answers, thumbnails: Thumbnails, exported: set[int]
    ) -> None:
        self._run, self._answers, self._thumbnails = run, answers, thumbnails
        self._exported = exported
        self._about = answers.about()

    def page(self, cluster: int, images: int) -> tuple[str, dict[str, Any]]:
        """Return the page of a cluster, and what the page of contents shows of it."""
        answer = self._answers.cluster(cluster, 0, images, most=images)
        for image in answer["images"]:
            image["image"] = self._small(image["chunk"], image["row"], _SIDE)
            image["labels"] = self._others(image["chunk"], image["row"], cluster)
        for other in answer["neighbors"]:
            self._dress(other)
        card = {**answer, "image": None}
        self._dress(card)
        return _render("cluster.html", about=self._about, cluster=answer), {
            name: card[name] for name in ("id", "size", "image", "here")
        }

    def contents(self, cards: list[dict[str, Any]]) -> str:
        """Return the page that links to all others."""
        return _render("contents.html", about=self._about, cards=cards)

    def _dress(self, card: dict[str, Any]) -> None:
        """Add the image that stands for a cluster, and whether its page is exported."""
        card["here"] = card["id"] in self._exported
        card["image"] = "", "empty"
        for chunk, row in card["cover"][:1]:
            card["image"] = self._small(chunk, row, _COVER)

    def _others(self, chunk: int, row: int, cluster: int) -> list[int]:
        label: np.ndarray = self._run.labels[chunk].label(row, row + 1)[0]
        return [int(other) for other in label if other not in (-1, cluster)]

    def _small(self, chunk: int, row: int, side: int) -> tuple[str, str]:
        """Return an image as a data URI and '', or '' and a word that says why not."""
        try:
            return data_uri("image/webp", self._thumbnails.get(chunk, row, side)), ""
        except (BadImage, UserError) as error:
            return "", why_not(error)


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = templates.html("mlcd.commands.explore", "templates")
    folder = resources.files("mlcd.commands.explore") / "static"
    environment.globals["style"] = (folder / "style.css").read_text(encoding="utf-8")
    environment.filters["shown"] = _shown
    return environment


def _shown(value: float | None, name: str) -> str:
    """Return a value of a column as people read it."""
    if value is None:
        return "–"
    if name in ("size", "use"):
        return f"{value:,}"
    return f"{100 * value:.0f} %" if name == "duplicates" else f"{value:.3f}"

"""The search that a section `label` asks for, and how far its labels agree with the exact ones."""

from __future__ import annotations

import numpy as np

from mlcd.config import Label
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.rows import Rows
from mlcd.neighbors.two_level import TwoLevelSearch, agreement, group_count, group_directions
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Rows of a chunk on which labels are compared with the exact ones. They lie evenly in it.
SAMPLE = 1024


def make_search(
    centers: np.ndarray,
    section: Label,
    *,
    device: str,
    threads: int,
    rows: int = 0,
    allow_integers: bool = False,
) -> ExactSearch | TwoLevelSearch:
    """Return the search among `centers` float32 [K, d] in the section's mode.

    `rows` will be searched. `allow_integers`: there is memory for the library of integer products.
    """
    if section.mode == "exact":
        return ExactSearch(
            centers, device=device, threads=threads, rows=rows, allow_integers=allow_integers
        )
    count = min(section.groups or group_count(len(centers)), len(centers))
    groups = group_directions(centers, count, device=device, threads=threads)
    return TwoLevelSearch(centers, groups, section.probes, device=device, threads=threads)


def check_agreement(
    search: ExactSearch | TwoLevelSearch, rows: Rows, section: Label, *, device: str, threads: int
) -> tuple[float, int]:
    """Return the share of exact labels that `search` finds, and the rows on which it was counted.

    1 and 0 for an exact search. Raises :class:`UserError`, which says how many groups would do, if
    the share is less than `section.min_agreement`.
    """
    if isinstance(search, ExactSearch) or rows.n == 0:
        return 1.0, 0
    sample = rows.take(np.unique(np.linspace(0, rows.n - 1, min(rows.n, SAMPLE)).astype(np.int64)))
    # Pruning is tried on many rows only.
    exact = ExactSearch(search.centers, device=device, threads=threads, prune=False)
    wanted = exact.nearest(sample, section.top)
    share = agreement(search.nearest(sample, section.top), wanted)
    LOGGER.info("agreement with exact labels: %.4f on %d rows", share, len(sample))
    if share >= section.min_agreement:
        return share, len(sample)
    probes, better = search.probes, 0.0
    while better < section.min_agreement and 2 * search.probes < search.groups:
        search.probes *= 2
        better = agreement(search.nearest(sample, section.top), wanted)
    enough = better >= section.min_agreement
    raise UserError(
        f"label.min_agreement: with label.probes {probes} only {share:.4f} of the exact labels "
        f"of {rows.files[0].path} are found, less than {section.min_agreement}; "
        + (f"set label.probes to {search.probes}" if enough else "set label.mode to exact")
        + ", or lower min_agreement"
    )

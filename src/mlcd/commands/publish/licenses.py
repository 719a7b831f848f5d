"""Licenses by their SPDX ids, and what model hubs call them."""

from __future__ import annotations

from typing import NamedTuple

from mlcd.utils.errors import UserError

#: Names of licenses on the hub (its docs, "Licenses") that are SPDX ids in lower case. It refuses
#: others: they go as `other`, with a name and a link.
_HUB = frozenset({
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "isc", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0", "postgresql",
    "unlicense", "wtfpl", "zlib",
})  # fmt: skip
#: Those that it calls otherwise.
_OTHERWISE = {
    "c-uda-1.0": "c-uda", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl",
    "agpl-3.0-only": "agpl-3.0", "gpl-2.0-only": "gpl-2.0", "gpl-3.0-only": "gpl-3.0",
    "lgpl-2.1-only": "lgpl-2.1", "lgpl-3.0-only": "lgpl-3.0",
}  # fmt: skip


class License(NamedTuple):
    """A license: `spdx` as SPDX spells it, `hub` as model hubs call it, `url` of its text."""

    spdx: str
    hub: str
    url: str


def parse(text: str) -> License:
    """Return the license of an SPDX id, in whatever case it is written.

    Source: the list of SPDX in `packaging`. Raises :class:`UserError` if it is no id of one.
    """
    from packaging.licenses import (
        InvalidLicenseExpression,
        canonicalize_license_expression,
    )

    try:
        spdx = str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        spdx = ""
    # Terms of one's own, and several licenses, have no text that a reader could look up.
    if not spdx or set(" (+") & set(spdx) or spdx.startswith("LicenseRef-"):
        raise UserError(
            f"--license: {text[:80]!r} is not the SPDX id of one license; give one of "
            "https://spdx.org/licenses, such as CC-BY-4.0, ODC-By-1.0 or CC0-1.0"
        )
    lower = spdx.lower()
    hub = _OTHERWISE.get(lower, lower if lower in _HUB else "other")
    return License(spdx, hub, f"https://spdx.org/licenses/{spdx}.html")

"""A profile's keys, read as Snakemake reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.utils.errors import UserError


def read(folder: Path) -> dict[str, Any]:
    """Return the keys of a profile, its expressions evaluated. Raises :class:`UserError`."""
    import yte

    path = folder / "config.yaml"
    try:
        with path.open(encoding="utf-8") as handle:
            keys = yte.process_yaml(handle, require_use_yte=True)
    except Exception as error:  # yte evaluates what the profile holds
        raise UserError(f"{path}: {' '.join(str(error).split())}; fix the profile") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path}: expected keys such as 'executor:'")
    return keys

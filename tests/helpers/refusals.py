"""What a refused command says."""

from __future__ import annotations

import pytest


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Check that the last run said one line on stderr with all `words`, and no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert sum(all(word in line for word in words) for line in said.splitlines()) == 1, said

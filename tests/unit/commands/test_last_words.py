"""The last words of `mlcd run`: where the results of the run that ended are, and what next."""

from __future__ import annotations

from mlcd.commands.run.last_words import last_words
from mlcd.launch.snakemake import announce


def test_they_name_what_is_there(tmp_path):
    assert list(last_words(tmp_path)) == []
    announce(tmp_path, {"results": "my results"}, {})
    (told,) = last_words(tmp_path)
    assert f"mlcd status '{tmp_path}/my results'" in told
    for name in ("evaluate/summary.md", "report/overview.html"):
        (tmp_path / "my results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my results" / name).touch()
    scores, page, told = last_words(tmp_path)
    assert scores.endswith("my results/evaluate/summary.md")
    assert "my results/report/overview.html" in page and "--report" in page

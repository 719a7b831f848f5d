"""A removed tar is downloaded again, once."""

from __future__ import annotations

import pytest

from helpers.checkout import ROOT, Checkout, serving

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
]

_CHUNK = "results/images/first-00000"
_TARGETS = ("--cores", "1", "--", f"{_CHUNK}/manifest.json")


def test_a_removed_tar_is_downloaded_again_and_that_is_the_end_of_it(tmp_path):
    checkout = Checkout(tmp_path / "checkout")
    with serving(tmp_path / "site") as url:
        checkout.write_images(url, tmp_path / "site")
        done = checkout.snakemake(*_TARGETS)
        assert done.returncode == 0, done.stdout[-3000:]
        tar = checkout.folder / _CHUNK / "00001.tar"
        whole = tar.read_bytes()
        tar.unlink()
        done = checkout.snakemake(*_TARGETS)
        assert done.returncode == 0, done.stdout[-3000:]
        assert f"{_CHUNK}/00001.tar: missing; made again" in done.stdout
        assert tar.read_bytes() == whole
        assert checkout.stale(*_TARGETS) == {}

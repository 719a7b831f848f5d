"""What stands where img2dataset has its resizer."""

from __future__ import annotations

import io

from helpers.builders import jpeg
from mlcd.config import Download
from mlcd.stages.download.resizer import Resizer


def test_resizer_decodes_before_it_keeps() -> None:
    resizer = Resizer(Download(min_image_size=20, max_pixels=5000))
    data = jpeg(1)
    assert resizer(io.BytesIO(data)) == (data, 48, 48, 48, 48, None)
    assert resizer(io.BytesIO(data[:400]))[-1] == "mlcd:damaged"
    assert resizer(io.BytesIO(jpeg(1, side=16)))[-1] == "mlcd:too_small"
    assert resizer(io.BytesIO(jpeg(1, side=80)))[-1] == "mlcd:too_large"

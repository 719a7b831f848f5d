"""RapidOCR as a reader of one image's lines, in a worker process of one thread."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data.decode import BadImage, decode
from mlcd.data.ocr import Line
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file

#: Weights in RapidOCR's own package: nothing is fetched. A newer one may have others.
_WEIGHTS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}

#: How many times its shorter side an image may be long.
_LONGEST = 8


def _weights() -> dict[str, Path]:
    """Return part → file of the weights. Raises :class:`UserError` without the extra `ocr`."""
    packages = ("rapidocr", "onnxruntime")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ocr.enabled: {missing[0]} is not installed; pip install 'mlcd[ocr]' "
            "(docs/how-to/ocr.md)"
        )
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None and spec.origin is not None
    found = {part: Path(spec.origin).parent / "models" / name for part, name in _WEIGHTS.items()}
    for path in found.values():
        if not path.is_file():
            raise UserError(f"{path}: RapidOCR has no such weights; install rapidocr 3.10")
    return found


def identity() -> dict[str, Any]:
    """Return what reads: version of RapidOCR, and the SHA-256 of each of its weights."""
    found = {part: sha256_file(path) for part, path in _weights().items()}
    return {"name": "rapidocr", "version": importlib.metadata.version("rapidocr"), "weights": found}


@functools.cache
def _engine(side: int) -> Any:
    """Return RapidOCR, of this process alone, with a detector that sees `side` pixels."""
    from rapidocr import RapidOCR

    parameters: dict[str, Any] = {
        "Global.log_level": "critical",
        # What is not sure enough is left out later, so that another threshold reads nothing anew.
        "Global.text_score": 0.0,
        "Det.limit_type": "min",
        "Det.limit_side_len": side,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    parameters |= {f"{part}.model_path": str(path) for part, path in _weights().items()}
    return RapidOCR(params=parameters)


def _no_strip(image: np.ndarray) -> np.ndarray:
    """Return the image [H, W, 3], a strip with white at its right or lower side.

    The shorter side is enlarged to what the detector sees: of a strip the longer one, and with it
    the memory, would grow without bound.
    """
    height, width = image.shape[:2]
    least = -(-max(height, width) // _LONGEST)
    missing = (max(0, least - height), max(0, least - width))
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=255)


@dataclass(frozen=True)
class ReadLines:
    """Bytes of an image to its lines of text, as a worker does it. Raises :class:`BadImage`."""

    side: int
    max_pixels: int

    def __call__(self, data: bytes) -> list[Line]:
        try:
            image = np.asarray(decode(data, max_pixels=self.max_pixels))
            # It takes arrays for those of OpenCV, whose channels are blue, green, red.
            found = _engine(self.side)(np.ascontiguousarray(_no_strip(image)[:, :, ::-1]))
        except MemoryError:
            raise BadImage("out_of_memory", "too large for this machine") from None
        texts, scores, boxes = (getattr(found, name, None) for name in ("txts", "scores", "boxes"))
        if texts is None or scores is None or boxes is None:
            return []
        corners = np.asarray(boxes, np.float64) / (image.shape[1], image.shape[0])
        least, most = corners.min(axis=1), corners.max(axis=1)
        return [
            Line(str(text), float(score), (*map(float, low), *map(float, high)))  # type: ignore[arg-type]
            for text, score, low, high in zip(texts, scores, least, most, strict=True)
        ]

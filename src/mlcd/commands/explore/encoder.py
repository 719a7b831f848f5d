"""The frozen encoder of a run, for a search by image or words; loaded at its first use."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.commands.explore.runs import Run
from mlcd.config.encoders import PACKAGED
from mlcd.data.decode import decode
from mlcd.data.embeddings import unusable
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

if TYPE_CHECKING:
    from mlcd.models.frozen.base import FrozenEncoder


class QueryEncoder:
    """Makes embeddings in the space of the centers, by the encoder that the centers name.

    `pretrained`: weights in the place of those that are named, such as a file that lies elsewhere
    here. Attributes: `images` and `texts`, whether these can be searched by; `name`.
    """

    def __init__(
        self, run: Run, pretrained: str | None, *, device: str, threads: int, max_pixels: int
    ) -> None:
        self._identity = run.centroids.described if run.centroids else {}
        self._pretrained, self._device, self._threads = pretrained, device, threads
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._encoder: FrozenEncoder | None = None
        self.name = str(self._identity.get("name", ""))
        self._side = _side(self._identity.get("preprocessing"))
        self.images = bool(self._identity.get("weights_sha256") and self._side)
        # The packaged encoder has no text tower; every model of open_clip has one.
        self.texts = self.images and self.name != PACKAGED

    def of_image(self, data: bytes) -> np.ndarray:
        """Return the embedding float32 [d] of an image file's bytes.

        Raises :class:`~mlcd.data.decode.BadImage` for what cannot be decoded, and
        :class:`UserError` if there is no encoder or it gives no direction.
        """
        # Decoding takes memory by the pixel: one at a time.
        with self._lock:
            image = decode(data, max_pixels=self._max_pixels)
            encoder = self._loaded()
            return _row(encoder.encode_images(encoder.preprocess(image)[None]).numpy())

    def of_text(self, text: str) -> np.ndarray:
        """Return the embedding float32 [d] of a text. Raises :class:`UserError`."""
        if not self.texts:
            raise UserError(f"{self.name or 'the encoder'} has no text tower")
        with self._lock:
            return _row(self._loaded().encode_texts([text]).numpy())

    def _loaded(self) -> FrozenEncoder:
        if not self.images:
            raise UserError("the run does not say which encoder its embeddings are of")
        if self._encoder is None:
            import torch

            from mlcd.models.frozen import load

            LOGGER.info("loading the encoder %s", self.name)
            if self._threads:
                torch.set_num_threads(self._threads)
            pretrained = self._pretrained or self._identity.get("pretrained")
            found = load(self.name, pretrained, self._side, device=self._device)
            if found.identity["weights_sha256"] != self._identity["weights_sha256"]:
                raise UserError(
                    f"--pretrained: {self.name} has other weights here than when the run was "
                    "embedded; give the file of those"
                )
            self._encoder = found
        return self._encoder


def _side(preprocessing: Any) -> int:
    """Return the side in pixels of the encoder's images; 0 where centers do not tell it."""
    with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):
        return int(json.loads(preprocessing)["size"][0])
    return 0


def _row(rows: np.ndarray) -> np.ndarray:
    if reason := unusable(rows)[0]:
        raise UserError(f"the encoder gives a {reason}; search by something else")
    return np.asarray(rows[0], np.float32)

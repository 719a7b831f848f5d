"""The store of regions: `regions/{chunk}.h5`, embeddings whose rows are boxes in images.

Cluster and label read it as any embeddings. Whoever needs the boxes opens it here.
"""

from __future__ import annotations

import os

import numpy as np

from mlcd.data import hdf5
from mlcd.data.embeddings import KIND, Embeddings
from mlcd.utils.errors import UserError

#: Datasets that embeddings of images lack.
BOX, IMAGE, IMAGE_SIZE = "box", "image", "image_size"


class RegionStore(Embeddings):
    """The regions of one chunk, opened by path.

    As :class:`Embeddings`, with a row per region; `places` says where the image of each lies.
    `source` is the fingerprint of the embeddings that :meth:`images` counts rows of. Raises
    :class:`UserError` also for embeddings without boxes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        with hdf5.reading(self.path, KIND) as file:
            wanted = {
                BOX: ((self.n, 4), np.float32),
                IMAGE: ((self.n,), np.int64),
                IMAGE_SIZE: ((self.n, 2), np.int32),
            }
            for name, (shape, kind) in wanted.items():
                if name not in file or (file[name].shape, file[name].dtype) != (shape, kind):
                    raise UserError(
                        f"{path}: no regions of ours ({name!r} is missing or of another shape); "
                        "rerun regions"
                    )
        self.source = str(self.attributes.get("embeddings", ""))

    def boxes(self) -> np.ndarray:
        """Return x0, y0, x1, y1 as shares of the image's width and height, float32 [n, 4].

        Raises :class:`UserError` if they were changed, or are no boxes in an image.
        """
        with hdf5.reading(self.path, KIND) as file:
            box = hdf5.whole(file, BOX)
        inside = (box >= 0).all(axis=1) & (box <= 1).all(axis=1)
        good = inside & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        if not good.all():
            raise UserError(f"{self.path}: box {int(np.argmin(good))} is none; rerun regions")
        return box

    def images(self) -> np.ndarray:
        """Return the row of the embeddings that each region's image has, int64 [n], ascending."""
        with hdf5.reading(self.path, KIND) as file:
            image = hdf5.whole(file, IMAGE)
        if len(image) and (image[0] < 0 or (np.diff(image) < 0).any()):
            raise UserError(f"{self.path}: its images are not in order; rerun regions")
        return image

    def image_sizes(self) -> np.ndarray:
        """Return width and height in pixels of each region's upright image, int32 [n, 2]."""
        with hdf5.reading(self.path, KIND) as file:
            size = hdf5.whole(file, IMAGE_SIZE)
        if len(size) and size.min() < 1:
            raise UserError(f"{self.path}: an image has no size; rerun regions")
        return size

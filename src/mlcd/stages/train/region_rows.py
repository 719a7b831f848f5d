"""Which regions of a step's images are rows of it, and where they lie in their crops."""

from __future__ import annotations

import numpy as np

from mlcd.stages.train.region_index import RegionIndex
from mlcd.training.crops import Augment
from mlcd.training.region_boxes import seen

_REGIONS = 7
#: All of a crop, as shares of it.
_WHOLE = np.array([0, 0, 1, 1], np.float32)


class RegionRows:
    """Chooses `count` regions of each image, by (seed, epoch, image) alone.

    `label` int32 [N, l] of the images, or [N, l + M] with words. `places`: rows and columns of the
    encoder's map. Of the regions that the image's crop shows, `count` are drawn without repetition.
    Where it shows fewer, they are repeated; where it shows none, the whole crop stands in, with the
    image's labels. So each image has as many rows at each step, on each rank.
    """

    def __init__(
        self,
        regions: RegionIndex,
        label: np.ndarray,
        augment: Augment,
        count: int,
        places: tuple[int, int],
    ) -> None:
        self._regions, self._label, self._augment = regions, label, augment
        self._places = places
        self.count = count

    def of(self, images: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32 [b · count, 4] and labels int64 [b · count, l + M] of images [b].

        The M words of a region are −1, none. Boxes are shares of the crop that the image has in
        this epoch.
        """
        box = np.empty((len(images), self.count, 4), np.float32)
        # Words are those of whole images: regions have none.
        label = np.full((len(images), self.count, self._label.shape[1]), -1, np.int64)
        width = self._regions.label.shape[1]
        for place, image in enumerate(images.tolist()):
            box[place], label[place, :, :width] = self._of(image, epoch)
        return box.reshape(-1, 4), label.reshape(len(images) * self.count, -1)

    def _of(self, image: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes and labels of an image, one row standing for all where all are alike."""
        regions = self._regions
        start, stop = regions.start[image : image + 2].tolist()
        if start < stop:
            width, height = regions.size[image].tolist()
            crop, flipped = self._augment.view(width, height, epoch, image)
            box, good = seen(
                regions.box[start:stop], (width, height), crop, flipped=flipped,
                places=self._places,
            )  # fmt: skip
            rng = np.random.default_rng([self._augment.seed, _REGIONS, epoch, image])
            order = rng.permutation(stop - start)
            order = order[good[order]]
            if len(order):
                chosen = np.resize(order, self.count)
                return box[chosen], regions.label[start:stop][chosen]
        return _WHOLE, self._label[image, : regions.label.shape[1]]

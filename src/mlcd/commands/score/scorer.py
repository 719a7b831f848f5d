"""k-NN of checkpoints on a bounded draw of a labeled set, by the functions of stage evaluate.

A score is a function of the checkpoint and of the settings: the images are drawn by a hash of seed
and name, features are computed in the order of the data set.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mlcd.commands.score.follow import Told
from mlcd.config import Evaluate, validate
from mlcd.config.labeled import Dataset
from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint, steps
from mlcd.data.labeled import layout
from mlcd.data.labeled.sample import Sample
from mlcd.data.labeled.samples import samples
from mlcd.stages.evaluate import cached, classes, feature_models, features
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.stages.train.final import write_encoder
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, write_text
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import line_of, parse_line

#: Seconds between looks for a checkpoint.
_POLL = 0.5
#: Images per forward pass.
_BATCH = 64


class Scorer:
    """Scores checkpoints of `folder` into `output`, a line per step; see the module.

    `lines`: step → its line. Lines of other settings (another set, other k) are dropped when the
    first score of these settings is written: they cannot be compared.
    """

    def __init__(
        self, section: Evaluate, folder: Path, output: Path, *, every: int, device: torch.device,
        threads: int,
    ) -> None:  # fmt: skip
        self._section = validate(Evaluate, json.loads(section.for_live()), "evaluate")
        (self._dataset,) = self._section.datasets
        self._folder, self._output = folder, output
        self._every, self._device, self._threads = every, device, threads
        settings = self._section.model_dump(mode="json", exclude={"live_every"})
        del settings["datasets"][0]["path"]
        self._set = sha256_json([settings, layout.identity(self._dataset)])[:8]
        self.lines = {
            int(line["step"]): line
            for line in _lines(output)
            if line.get("set") == self._set and "step" in line
        }
        self._images: list[Sample] | None = None

    def follow(self, told: Told) -> None:
        """Score checkpoints as they come, until the training has ended and none is left."""
        ended = False
        while True:
            self.score_all()
            if ended:
                break
            ended = told.wait(_POLL)
        last = max(self.lines, default=0)
        missing = [step for step in range(self._every, last, self._every) if step not in self.lines]
        if missing:
            LOGGER.info(
                "steps %s have no score: their checkpoints were gone before they were read",
                ", ".join(map(str, missing)),
            )

    def score_all(self) -> int:
        """Score what stands and has no score yet; return how many were scored."""
        count = 0
        while path := self._next():
            try:
                self._score(path)
                count += 1
            except (UserError, OSError, SafetensorError):
                if path.exists():
                    raise
                # Removed while it was read: newer ones are there.
        return count

    def _next(self) -> Path | None:
        for path in steps(self._folder):
            step = path.name.removeprefix("step_")
            if step.isdigit() and int(step) % self._every == 0 and int(step) not in self.lines:
                return path
        return None

    def _score(self, path: Path) -> None:
        checkpoint = Checkpoint(path)
        line = {"step": checkpoint.step, "set": self._set, **self._judge(checkpoint)}
        self.lines[checkpoint.step] = line
        ordered = (self.lines[step] for step in sorted(self.lines))
        write_text(self._output, "".join(map(line_of, ordered)))
        shown = [f"{name} {value:.4f}" for name, value in line.items() if name.startswith("knn_")]
        LOGGER.info("step %d on %s: %s", checkpoint.step, self._dataset.name, ", ".join(shown))

    def _judge(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the scores of a checkpoint's encoder, and what they are of."""
        images = self._drawn()
        place = self._output.with_name(f"{self._output.stem}.work")
        # What a killed start left may be of other images of the set.
        shutil.rmtree(place, ignore_errors=True)
        try:
            # As it would be at the end of the training, and read as it would be then.
            train = validate(Train, checkpoint.section, str(checkpoint.path), "train")
            write_encoder(checkpoint, train, place)
            model = feature_models.load("trained", self._section, str(place), "", self._device)
            file = place / "features.h5"
            features.extract(
                self._section, self._dataset, "trained", model, file,
                batch_size=_BATCH, workers=self._threads, images=images,
            )  # fmt: skip
            data = cached.read(file, self._device, trunk=False)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        result: dict[str, Any] = {"scores": {}, "chance": {}}
        classes.judge(self._section, self._dataset, data, result)
        return {
            "dataset": self._dataset.name,
            "train_images": int(data.on("train").sum()),
            "test_images": int(data.on("test").sum()),
            # The same answer for every image: one number for all k.
            "chance": round(next(iter(result["chance"].values())), DIGITS),
            **{name: round(value, DIGITS) for name, value in result["scores"].items()},
        }

    def _drawn(self) -> list[Sample]:
        """Return the images, in the order of the data set; read at the first score."""
        if self._images is None:
            self._images = draw(self._dataset, self._section.live_images, self._section.seed)
            LOGGER.info("%d labeled images of %s", len(self._images), self._dataset.name)
        return self._images


def draw(dataset: Dataset, most: int, seed: int) -> list[Sample]:
    """Return `most` labeled images of a data set, all if it has fewer, in its order.

    Those whose hash of `seed` and name is least: the shares of splits and classes are kept on
    average, and no more than `most` are in memory.
    """
    kept: list[tuple[int, int, Sample]] = []
    for place, sample in enumerate(samples(dataset)):
        if sample.label is None:
            continue
        digest = hashlib.sha256(f"{seed} {sample.key}".encode(errors="surrogateescape")).digest()
        item = (-int.from_bytes(digest[:8], "big"), -place, sample)
        if len(kept) < most:
            heapq.heappush(kept, item)
        elif item[:2] > kept[0][:2]:
            heapq.heapreplace(kept, item)
    return [sample for _, _, sample in sorted(kept, key=lambda item: -item[1])]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of scores; none of a file that is not there or not whole."""
    try:
        return [parse_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []

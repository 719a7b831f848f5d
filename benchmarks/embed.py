"""Embeddings of tars beside clip-retrieval's way: webdataset's reader, torchvision, one .npy.

    python benchmarks/embed.py                                        a CLIP of next to nothing
    python benchmarks/embed.py --model efficientnet_lite0 --images 128

What `--images` images more than a tenth of them cost, in CPU milliseconds, through the same model
in the same process. A model that takes time of its own is measured with and without its forward
pass: without it both ways do all else, and the features are ones. Images are those of
benchmarks/jpegs.py, contenders take turns, and figures are the median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import mlcd.utils.compat  # noqa: E402, F401  (before torchvision)

# isort: split
import goals  # noqa: E402
import jpegs  # noqa: E402
import machine  # noqa: E402
from jpegs import SIDE, cpu_seconds, table  # noqa: E402
from readers import BATCH, BICUBIC, webdataset_loader  # noqa: E402
from torchvision import transforms  # noqa: E402

from mlcd.config import Embed  # noqa: E402
from mlcd.models import frozen  # noqa: E402
from mlcd.models.frozen.base import FrozenEncoder  # noqa: E402
from mlcd.stages.embed import chunk  # noqa: E402

TINY = "tiny"
PEER, OURS = "webdataset, torchvision, .npy", "mlcd embed"


def tiny_clip(folder: Path) -> str:
    """Make open_clip know a CLIP of one narrow layer: next to nothing but the way to it counts."""
    import open_clip

    about = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "patch_size": 32,
                       "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    (folder / "narrow-clip.json").write_text(json.dumps(about))
    open_clip.add_model_config(folder / "narrow-clip.json")
    return "narrow-clip"


def by_others(encoder: FrozenEncoder, tars: Path) -> None:
    """Embed as clip-retrieval does: webdataset's reader, torchvision's transform, one .npy."""
    transform = transforms.Compose(
        [
            transforms.Resize(SIDE, interpolation=BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(encoder.pixels.mean, encoder.pixels.std),
        ]
    )
    found = []
    with torch.inference_mode():
        for (batch,) in webdataset_loader(tars / "00000.tar", transform, BATCH):
            features = encoder._image_features(batch)
            found.append(torch.nn.functional.normalize(features, dim=1).half().numpy())
    np.save(tars / "e.npy", np.concatenate(found))


def ones(encoder: FrozenEncoder) -> None:
    """Leave out the forward pass of an encoder."""
    features = torch.ones(BATCH, encoder.dim)
    encoder._image_features = lambda batch: features[: len(batch)]  # type: ignore[method-assign]


def measure(
    encoder: FrozenEncoder, section: Embed, folder: Path, count: int, repeats: int
) -> jpegs.Times:
    """Return CPU milliseconds per image of each contender and round.

    `folder` holds the tars `few` and `all`, which has `count` images more.
    """
    times: jpegs.Times = {PEER: [], OURS: []}
    for _ in range(repeats):
        spent: dict[str, list[float]] = {label: [] for label in times}
        for part in ("few", "all"):
            tars = folder / part
            (tars / "e.h5").unlink(missing_ok=True)
            start = cpu_seconds()
            by_others(encoder, tars)
            between = cpu_seconds()
            chunk.embed(tars, tars / "e.h5", section, workers=1)
            spent[PEER].append(between - start)
            spent[OURS].append(cpu_seconds() - between)
        for label, (least, most) in spent.items():
            times[label].append(1000 * (most - least) / count)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[TINY, "efficientnet_lite0"], default=TINY)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=jpegs.KINDS, default=list(jpegs.KINDS))
    arguments = parser.parse_args()
    # A spawned worker imports the file of its parent, if there is one: torch and all of the above.
    globals().pop("__file__")
    torch.set_num_threads(1)
    print(machine.description())
    count, few = arguments.images, arguments.images // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = arguments.model == TINY
        model = tiny_clip(folder) if tiny else arguments.model
        section = Embed(model=model, image_size=SIDE)
        for kind in arguments.kinds:
            data = jpegs.jpegs(kind, few + count)
            for part, some in (("few", data[:few]), ("all", data)):
                (folder / kind / part).mkdir(parents=True)
                jpegs.write_tar(folder / kind / part / "00000.tar", some)
        encoder = frozen.load(model, image_size=SIDE)
        # Both ways take this one: what it costs to load is no part of an image's cost.
        frozen.load = lambda *_: encoder
        for without in [False] if tiny else [False, True]:
            if without:
                ones(encoder)
            for kind in arguments.kinds:
                times = measure(encoder, section, folder / kind, count, arguments.repeats)
                row = f"embed, {arguments.model} model" if tiny else f"embed, {model}"
                row += f", {kind}, " + "without the forward pass, " * without + "per image"
                table(f"{row}: {count} images beyond start-up", times)
                limit = 1 / 1.5 if tiny or without else 1.0
                goals.state(row, times[OURS], {PEER: times[PEER]}, limit, unit="CPU ms")


if __name__ == "__main__":
    main()

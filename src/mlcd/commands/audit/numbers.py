"""Do the numbers follow from the files? A sample of each is computed anew.

A forger who edits a result and every hash above it passes any comparison of hashes. Labels, scores
and exports that do not follow from what they were made from, this finds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.integrity import is_scores, summary
from mlcd.commands.audit.nodes import Finding
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.utils.errors import UserError

#: Similarities are stored in float16: half a step of it at 1, and what sums of floats lose.
_SIMILARITY = 2.0**-11
#: Cosine of an embedding that is computed anew, on this machine, to the stored one.
_SAME = 0.999
#: Centers that sampled rows are compared with at once.
_CENTERS = 16_384
#: Images that each encoder sees again.
_IMAGES = 16
#: They were decoded before, under a limit of their own.
_PIXELS = 1 << 28


class Run:
    """A run's folder, its lock, and rows drawn with a seed. `skipped`: what could not be told."""

    def __init__(self, results: Path, lock: dict[str, Any], rows: int, seed: int) -> None:
        from mlcd.commands.audit.recorded import Recorded

        self.results = results
        self.recorded = Recorded(results, lock)
        self.stages = lock["stages"]
        self.files = sorted(lock["files"])
        self.labels = locks.labels_of(results, lock)
        self.rows = rows
        self.random = np.random.default_rng(seed)
        self.skipped: list[str] = []
        self.told: list[str] = []

    def chunks(self) -> list[str]:
        """Names of the chunks whose labels come of embeddings; own labels come of nothing here."""
        known = set(self.files)
        return [Path(name).stem for name in self.labels
                if f"{self.recorded.embeddings}/{Path(name).name}" in known]  # fmt: skip

    def chosen(self, n: int, chunks: int) -> np.ndarray:
        """Rows of a chunk of `n`: about `rows` over all chunks, at least one, rising."""
        count = min(n, max(1, -(-self.rows // max(1, chunks))))
        return np.sort(self.random.choice(n, count, replace=False))


def check(results: Path, lock: dict[str, Any], rows: int, seed: int) -> tuple[list[Finding], Run]:
    """Compute samples of all numbers anew; return what does not follow, and what was compared."""
    run = Run(results, lock, rows, seed)
    found: list[Finding] = []
    for one in (_images, _embeddings, _labels, _objective, _scores, _summary, _exports):
        try:
            found += list(one(run))
        except (UserError, OSError, LookupError, ValueError, TypeError) as error:
            # Files and settings are a stranger's, or of another version: anything may be in them.
            said = " ".join(f"{error}".split()) or type(error).__name__
            found.append(Finding(one.__name__.strip("_"), said))
    return found, run


def _few(run: Run) -> list[str]:
    """Sixteen chunks at most, evenly spaced: each costs a file or three."""
    chunks = run.chunks()
    if not chunks:
        return []
    places = np.unique(np.linspace(0, len(chunks) - 1, 16).astype(int))
    return [chunks[place] for place in places]


def _images(run: Run) -> Iterator[Finding]:
    """The images of sampled rows have the digests that the embeddings hold."""
    chunks, looked = _few(run), 0
    for chunk in chunks:
        vectors, store = _pair(run, chunk)
        if vectors is None or store is None:
            continue
        places = vectors.places()
        for row in run.chosen(len(vectors), len(chunks)):
            place = [int(values[row]) for values in places]
            looked += 1
            try:
                store.read(*place)
            except (UserError, OSError) as error:
                yield Finding(f"images/{chunk}", " ".join(str(error).split()))
                break
    run.told.append(f"images: {looked} have the digests of their embeddings")


def _embeddings(run: Run) -> Iterator[Finding]:
    """A few images, encoded again, give the embeddings that are stored."""
    import torch

    from mlcd.config import Embed
    from mlcd.data.decode import decode
    from mlcd.models import frozen

    section = Embed.model_validate(run.stages["embed"]["section"])
    if not run.chunks() or section.embeddings:
        run.skipped.append("embeddings: they came from outside")
        return
    if section.features != "image":
        run.skipped.append(f"embeddings: of {section.features}, which are not computed again")
        return
    try:
        encoder = frozen.load(section.model, section.pretrained, section.image_size, "cpu")
    except UserError as error:
        run.skipped.append(f"embeddings: {error}")
        return
    looked = 0
    for chunk in _few(run)[:2]:
        vectors, store = _pair(run, chunk)
        if vectors is None or store is None:
            continue
        places = vectors.places()
        rows = run.chosen(len(vectors), 1)[:_IMAGES]
        data = [store.read(*(int(values[row]) for values in places)) for row in rows]
        batch = torch.stack([encoder.preprocess(decode(one, max_pixels=_PIXELS)) for one in data])
        again = encoder.encode_images(batch).numpy()
        stored = np.concatenate([vectors.read(int(row), int(row) + 1) for row in rows])
        cosine = (again * stored).sum(1) / np.linalg.norm(stored, axis=1)
        looked += len(rows)
        # What is no number is less than nothing, and argmin finds it first.
        if (worst := int(cosine.argmin())) >= 0 and not cosine[worst] >= _SAME:
            yield Finding(
                f"{run.recorded.embeddings}/{chunk}.h5",
                f"row {rows[worst]} is not what {section.model} makes of its image "
                f"(cosine {cosine[worst]:.4f})",
            )
    run.told.append(f"embeddings: {looked} images encoded again")


def _labels(run: Run) -> Iterator[Finding]:
    """Labels of sampled rows are the nearest centers, found by comparing with all of them."""
    centers = _centers(run)
    if centers is None:
        return
    chunks, looked = run.chunks(), 0
    for chunk in chunks:
        vectors, labels = _opened(run, chunk)
        if len(labels) != len(vectors):
            yield Finding(f"labels/{chunk}.h5", "has not one row per embedding")
            continue
        if not len(vectors):
            continue
        rows = run.chosen(len(labels), len(chunks))
        looked += len(rows)
        unit, wrong = _unit(vectors, rows), ""
        best = _best(unit, centers, labels.label(0, 1).shape[1])
        for place, row in enumerate(rows.tolist()):
            given = labels.label(row, row + 1)[0]
            said = labels.similarity(row, row + 1)[0].astype(np.float64)
            kept = given >= 0
            mine = centers[given[kept]].astype(np.float64) @ unit[place]
            if not kept.any() or not np.abs(mine - said[kept]).max() <= _SIMILARITY:
                wrong = wrong or f"row {row}: its similarities are not those of its labels"
            elif "two_level" not in labels.section and not (
                np.abs(mine - best[place, : len(mine)]).max() <= 1e-5
            ):
                wrong = wrong or f"row {row}: its labels are not the nearest centers"
        if wrong:
            yield Finding(f"labels/{chunk}.h5", wrong)
    run.told.append(f"labels: {looked} rows compared with all {len(centers):,} centers")


def _best(rows: np.ndarray, centers: np.ndarray, l: int) -> np.ndarray:
    """Return the `l` greatest similarities of unit rows float64 [n, d], falling: float64 [n, l].

    By blocks of centers float32 [K, d]: all products of a million would take gigabytes.
    """
    best = np.full((len(rows), l), -np.inf)
    for start in range(0, len(centers), _CENTERS):
        block = rows @ centers[start : start + _CENTERS].T.astype(np.float64)
        both = np.concatenate([best, block], axis=1)
        best = -np.sort(np.partition(-both, l - 1, axis=1)[:, :l], axis=1)
    return best


def _objective(run: Run) -> Iterator[Finding]:
    """The last objective is the mean similarity of a sample to its nearest center."""
    centers = _centers(run)
    path = run.results / "clusters" / "centroids.h5"
    if centers is None:
        return
    if run.stages["cluster"]["section"].get("centers"):
        run.skipped.append("objective: the centers came from outside")
        return
    import h5py

    with h5py.File(path) as file:
        if "objective" not in file or not len(file["objective"]):
            run.skipped.append("objective: the centers record none")
            return
        said = float(file["objective"][-1])
    folders = run.recorded.clustered
    paths = [run.results / folder / f"{chunk}.h5" for folder in folders for chunk in run.chunks()]
    sizes, means, spreads, looked = [], [], [], 0
    for path_of_rows in paths:
        if not path_of_rows.is_file() or not len(vectors := Embeddings(path_of_rows)):
            continue
        best = _best(_unit(vectors, run.chosen(len(vectors), len(paths))), centers, 1)[:, 0]
        sizes.append(len(vectors))
        means.append(float(best.mean()))
        spreads.append((float(best.std()) if len(best) > 1 else 1.0) ** 2 / len(best))
        looked += len(best)
    if not sizes:
        run.skipped.append("objective: no chunk has a row")
        return
    # Each file stands for as many rows as it has, however many of them were drawn.
    weights = np.array(sizes) / sum(sizes)
    mean = float(weights @ np.array(means))
    # It was taken before the centers moved for the last time, which raises it a little.
    noise = 5 * float(np.sqrt(weights**2 @ np.array(spreads)))
    if not said - noise - 0.002 <= mean <= said + noise + 0.02:
        yield Finding("clusters/centroids.h5", f"objective {said:.4f}, and {mean:.4f} on a sample")
    run.told.append(f"objective: {said:.4f}, and {mean:.4f} on {looked} rows")


def _scores(run: Run) -> Iterator[Finding]:
    """Scores follow from the features: those of the trained encoder, and of one other model."""
    from mlcd.commands.audit import nearness, replay
    from mlcd.commands.audit.making import Making

    models = [name for name in run.files if is_scores(name)]
    others = [name for name in models if not name.endswith("/trained.json")]
    left = set(others) - ({str(run.random.choice(others))} if others else set())
    models = [name for name in models if name not in left]
    run.skipped += [f"{name}: not drawn (another --seed draws others)" for name in sorted(left)]
    with tempfile.TemporaryDirectory(prefix="mlcd-audit-") as scratch:
        for name in models:
            try:
                replay.run_again(run.recorded, Making("scores", Path(name).stem), Path(scratch))
            except replay.Cannot as why:
                run.skipped.append(f"{name}: {why}")
                continue
            if difference := nearness.numbers_differ(run.results / name, Path(scratch) / name):
                yield Finding(name, difference)
            else:
                run.told.append(f"{name}: scored again, equal")


def _summary(run: Run) -> Iterator[Finding]:
    """Every score of the summary is that of its model's file."""
    yield from summary(run.results, run.files)
    run.told.append("summary: its scores are those of the models' files")


def _exports(run: Run) -> Iterator[Finding]:
    """Exports compute what the weights compute."""
    import torch

    from mlcd.models import trainable
    from mlcd.stages.export.loading import open_model

    folders = [Path(name).parent for name in run.files if name.startswith("export/")
               and name.endswith("/check.json")]  # fmt: skip
    if not folders:
        return
    encoder = trainable.load(run.results / "train").eval()
    side = encoder.image_size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = encoder(images)
        for folder in folders:
            theirs = open_model(run.results / folder, torch.device("cpu")).network(images)
            largest = float(ours.abs().max())
            # Of weights that are no numbers nothing follows: all comparisons are for what holds.
            same = ours.shape == theirs.shape
            if not same or not float((ours - theirs).abs().max()) <= 1e-3 * largest:
                yield Finding(folder.as_posix(), "computes other outputs than the weights")
    run.told.append(f"exports: {len(folders)} compute what the weights compute")


def _pair(run: Run, chunk: str) -> tuple[Embeddings | None, ImageStore | None]:
    vectors = Embeddings(run.results / run.recorded.embeddings / f"{chunk}.h5")
    if not len(vectors) or not (run.results / "images" / chunk / "manifest.json").is_file():
        return None, None
    return vectors, ImageStore(run.results / "images" / chunk)


def _opened(run: Run, chunk: str) -> tuple[Embeddings, Labels]:
    return (
        Embeddings(run.results / run.recorded.embeddings / f"{chunk}.h5"),
        Labels(run.results / "labels" / f"{chunk}.h5"),
    )


def _centers(run: Run) -> np.ndarray | None:
    path = run.results / "clusters" / "centroids.h5"
    if not path.is_file() or not run.chunks():
        run.skipped.append("labels and objective: this run has none of its own")
        return None
    return Centroids(path).array


def _unit(vectors: Embeddings, rows: np.ndarray) -> np.ndarray:
    """Return these rows as float64 [rows, d] of unit length; a large chunk is not read whole."""
    block = np.concatenate([vectors.read(row, row + 1) for row in rows.tolist()]).astype(np.float64)
    return np.asarray(block / np.linalg.norm(block, axis=1, keepdims=True))

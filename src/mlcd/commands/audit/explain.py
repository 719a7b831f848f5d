"""Where a file, an image or a cluster of a run comes from, in words, from its lock and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import ORDER, Node
from mlcd.utils.errors import UserError


def lineage(results: Path, lock: dict[str, Any], path: str) -> list[str]:
    """Return lines that say where a file comes from, stage by stage. Raises :class:`UserError`."""
    nodes = locks.nodes_of(lock)
    if path not in nodes:
        raise UserError(f"{results / path}: no file of this run's lock; name one below {results}")
    by_hash: dict[str, list[Node]] = {}
    for node in nodes.values():
        by_hash.setdefault(node.hash, []).append(node)
    above = _above(nodes[path], by_hash)
    lines = [f"{path}: {nodes[path].of} {nodes[path].hash}"]
    for stage in sorted({node.stage for node in above}, key=ORDER.index, reverse=True):
        files = sorted(node.path for node in above if node.stage == stage and node.path != path)
        about = lock["stages"].get(stage, {})
        lines.append(f"by stage {stage}, code {about.get('code', 'unknown')}")
        lines += [f"  from {name}" for name in files[:3]]
        lines += [f"  and {len(files) - 3} more"] if len(files) > 3 else []
    return lines + [
        f"from the input {entry['name']}: {entry['of']} {entry['hash']}" for entry in lock["inputs"]
    ]


def _above(node: Node, by_hash: dict[str, list[Node]]) -> list[Node]:
    """Return the node and all that it was made from."""
    found, waiting = {node.path: node}, [node]
    while waiting:
        one = waiting.pop()
        for word in one.inputs:
            for other in by_hash.get(word, []):
                if other.path not in found:
                    found[other.path] = other
                    waiting.append(other)
    return list(found.values())


def image(results: Path, chunk: str, key: str) -> list[str]:
    """Return lines on one image: its URL, its place, its clusters. Raises :class:`UserError`."""
    from mlcd.data.embeddings import Embeddings
    from mlcd.data.image_store import ImageStore
    from mlcd.data.labels import Labels

    store = ImageStore(results / "images" / chunk)
    table = store.table()
    found = table[table["key"] == key]
    if not len(found):
        raise UserError(f"{results / 'images' / chunk}: no image {key}; keys are nine digits")
    row = found.iloc[0]
    lines = [f"{chunk}/{key}: {row['url']}"]
    if row["status"] != "success":
        return [*lines, f"  not downloaded: {row['reason']}"]
    lines.append(f"  {row['width']} × {row['height']} pixels, SHA-256 {row['sha256']}")
    lines.append(f"  in {store.tars[int(row['tar'])].name}, at {row['offset']}")
    vectors = Embeddings(results / "embeddings" / f"{chunk}.h5")
    keys = vectors.keys().tolist()
    if key.encode() not in keys:
        return [*lines, f"  not embedded; failed_key of embeddings/{chunk}.h5 says why"]
    place = keys.index(key.encode())
    lines.append(f"  embedded as row {place} of embeddings/{chunk}.h5")
    labels = Labels(results / "labels" / f"{chunk}.h5")
    pairs = zip(
        labels.label(place, place + 1)[0], labels.similarity(place, place + 1)[0], strict=True
    )
    told = ", ".join(f"{one} ({cosine:.3f})" for one, cosine in pairs if one >= 0)
    return [*lines, f"  clusters, nearest first (cosine): {told}"]


def cluster(results: Path, number: int) -> list[str]:
    """Return lines on one cluster: its size, and the images nearest to its center."""
    from mlcd.data.centroids import Centroids
    from mlcd.data.embeddings import Embeddings
    from mlcd.data.labels import Labels

    centers = Centroids(results / "clusters" / "centroids.h5")
    if not 0 <= number < centers.K:
        raise UserError(f"cluster {number}: there are {centers.K}, counted from 0")
    near: list[tuple[float, str]] = []
    count = 0
    for path in sorted((results / "labels").glob("*.h5")):
        labels = Labels(path)
        rows = (labels.label()[:, 0] == number).nonzero()[0]
        cosine = labels.similarity()[:, 0]
        keys = Embeddings(results / "embeddings" / path.name).keys()
        count += len(rows)
        near += [(-float(cosine[row]), f"{path.stem}/{keys[row].decode()}") for row in rows]
    lines = [
        f"cluster {number} of {centers.K}: {int(centers.sizes[number])} images in the last pass",
        f"first label of {count} images; nearest (cosine):",
    ]
    return lines + [f"  {name} ({-cosine:.3f})" for cosine, name in sorted(near)[:10]]

"""Where a file, an image, a cluster or a score of a run comes from, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.commands.audit import integrity
from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import ORDER, Node
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_csv, read_record

if TYPE_CHECKING:
    from mlcd.data.labels import Labels

#: Lines that a screen takes, of each kind.
_FILES, _EPOCHS, _SCORES, _IMAGES = 3, 8, 6, 10


def lineage(results: Path, lock: dict[str, Any], path: str) -> list[str]:
    """Return lines that say where a file comes from, stage by stage. Raises :class:`UserError`."""
    nodes = locks.nodes_of(lock)
    if path not in nodes:
        raise UserError(f"{results / path}: no file of this run's lock; name one below {results}")
    above, below = _above(nodes[path], nodes), _below(nodes[path], nodes)
    lines = [f"{path}: {nodes[path].of} {nodes[path].hash}"]
    for stage in _stages(above, backward=True):
        about = lock["stages"].get(stage, {})
        how = "".join(f", {key} {value}" for key, value in about.get("how", {}).items())
        lines.append(f"by stage {stage}, code {about.get('code', 'unknown')}{how}")
        lines += _named("  from", [node for node in above if node.stage == stage], path)
    # A data set that scores are of is no origin of weights.
    named = {word for node in above for word in node.inputs}
    known = {word for node in nodes.values() for word in node.inputs}
    for entry in lock["inputs"]:
        words = set(entry.get("identities", ()))
        about = f"{entry['name']}: {entry['of']} {entry['hash']}"
        if words & named:
            lines.append(f"from the input {about}")
        elif not words & known:
            # Tables and own rows, of which files note what they took.
            lines.append(f"an input of the run, which no file names: {about}")
    for stage in _stages(below):
        lines += _named("goes into", [node for node in below if node.stage == stage], path)
    changes = integrity.accepted(results)
    return lines + [f"note: {line}" for line in changes]


def _named(words: str, nodes: list[Node], path: str) -> Iterator[str]:
    names = sorted(node.path for node in nodes if node.path != path)
    yield from (f"{words} {name}" for name in names[:_FILES])
    if len(names) > _FILES:
        blanks = " " * (len(words) - len(words.lstrip()))
        yield f"{blanks}and {len(names) - _FILES} more of {nodes[0].stage}"


def _stages(nodes: list[Node], *, backward: bool = False) -> list[str]:
    return sorted({node.stage for node in nodes}, key=ORDER.index, reverse=backward)


def _above(node: Node, nodes: dict[str, Node]) -> list[Node]:
    """Return the node and all that it was made from."""
    by_hash: dict[str, list[Node]] = {}
    for one in nodes.values():
        by_hash.setdefault(one.hash, []).append(one)
    found, waiting = {node.path: node}, [node]
    while waiting:
        one = waiting.pop()
        for word in one.inputs:
            for other in by_hash.get(word, []):
                if other.path not in found:
                    found[other.path] = other
                    waiting.append(other)
    return list(found.values())


def _below(node: Node, nodes: dict[str, Node]) -> list[Node]:
    """Return all that was made from a node, itself left out."""
    users: dict[str, list[Node]] = {}
    for one in nodes.values():
        for word in one.inputs:
            users.setdefault(word, []).append(one)
    found: dict[str, Node] = {}
    waiting = [node]
    while waiting:
        for other in users.get(waiting.pop().hash, []):
            if other.path not in found:
                found[other.path] = other
                waiting.append(other)
    found.pop(node.path, None)
    return list(found.values())


def image(results: Path, chunk: str, key: str) -> list[str]:
    """Return lines on one image, from its URL to the scores that rest on it.

    Raises :class:`UserError`.
    """
    from mlcd.data.embeddings import Embeddings
    from mlcd.data.image_store import ImageStore
    from mlcd.data.labels import Labels

    store = ImageStore(results / "images" / chunk)
    table = store.table()
    found = table[table["key"] == key]
    if not len(found):
        raise UserError(f"{results / 'images' / chunk}: no image {key}; keys are nine digits")
    row = found.iloc[0]
    lines = [f"{chunk}/{key}: {row['url']}", *_listed(results, chunk)]
    if row["status"] != "success":
        return [*lines, f"  not downloaded: {row['reason']}"]
    lines.append(f"  {row['width']} × {row['height']} pixels, SHA-256 {row['sha256']}")
    lines.append(f"  in {store.tars[int(row['tar'])].name}, at {row['offset']}")
    path = results / "embeddings" / f"{chunk}.h5"
    labels = Labels(results / "labels" / f"{chunk}.h5")
    # Own labels say themselves where images lie.
    if path.is_file():
        keys = Embeddings(path).keys().tolist()
        if key.encode() not in keys:
            return [*lines, f"  not embedded; failed_key of embeddings/{chunk}.h5 says why"]
        place = keys.index(key.encode())
        lines.append(f"  embedded as row {place} of embeddings/{chunk}.h5")
        vectors = labels.embeddings_in(results)
        if vectors != path and (why := _left_out(results, chunk, place)):
            return [*lines, why]
        places: Embeddings | Labels = Embeddings(vectors)
        place = places.keys().tolist().index(key.encode())
    else:
        places = labels
        at = labels.places()
        here = (at.tar == int(row["tar"])) & (at.offset == int(row["offset"]))
        if not here.any():
            return [*lines, "  without a label"]
        place = int(here.argmax())
    pairs = zip(
        labels.label(place, place + 1)[0], labels.similarity(place, place + 1)[0], strict=True
    )
    told = ", ".join(f"{one} ({cosine:.3f})" for one, cosine in pairs if one >= 0)
    if not told:
        return [*lines, "  without a label: no step of training saw it"]
    lines.append(f"  clusters, nearest first (cosine): {told}")
    return [*lines, *_steps(results, chunk, places, place), *_scores(results)]


def _left_out(results: Path, chunk: str, row: int) -> str:
    """Return a line on why stage curate left a row of the embeddings out; '' if it did not."""
    from mlcd.data.curation import Curation
    from mlcd.data.embeddings import Embeddings

    decision = Curation(results / "curate" / "rows" / f"{chunk}.h5").decision(row)
    if decision is None:
        return ""
    why = f"  left out by curate: {decision.reason}"
    if decision.chunk:
        other = Embeddings(results / "embeddings" / f"{decision.chunk}.h5")
        key = other.keys(decision.row, decision.row + 1)[0].decode()
        why += f" of {decision.chunk}/{key} (cosine {decision.similarity:.3f}), which is kept"
    return why


def _listed(results: Path, chunk: str) -> list[str]:
    path = results / "urls" / f"{chunk}.json"
    if not path.is_file():
        return []
    about = read_record(path, "prepare")
    return [f"  of the list {about['source']}, rows {about['start']} to {about['stop'] - 1}"]


def _steps(results: Path, chunk: str, places: Any, row: int) -> list[str]:
    """Return a line on the steps of training that saw a row of a chunk.

    The order of images is a function of the seed, the epoch, and how many images each tar has.
    """
    import numpy as np

    from mlcd.config.train import Train
    from mlcd.data.image_store import ImageStore
    from mlcd.data.labels import Labels, of_run
    from mlcd.stages.train import inputs
    from mlcd.training.shuffle import Order, step_of

    path = results / "train" / "encoder.json"
    if not path.is_file():
        return []
    about = read_record(path, "train")
    section = Train.model_validate({**about["section"], "initial": None})
    counts: list[int] = []
    index = -1
    files = [Labels(file) for file in of_run(results)]
    for labels in sorted(files, key=lambda one: one.chunk):
        mine = labels.chunk == chunk
        where = places if mine else _places(results, labels)
        store = ImageStore(results / "images" / labels.chunk)
        found, _, tars = inputs.labeled_rows(labels, where, store, section.positives or labels.l)
        if mine:
            at = where.places()
            same = (found["tar"] == at.tar[row]) & (found["offset"] == at.offset[row])
            index = sum(counts) + int(same.argmax()) if same.any() else -1
        counts += np.bincount(found["tar"], minlength=tars).tolist()
    if index < 0:
        return ["  without a label that counts: no step of training saw it"]
    order = Order(
        np.array(counts, np.int64), batch=section.batch_size, block=section.shuffle_block,
        window=section.shuffle_window, seed=section.seed, by_place=section.shares_by_place,
    )  # fmt: skip
    each = order.steps_per_epoch
    epochs = -(-int(about["steps"]) // each)
    steps = [step_of(order, epoch, index) for epoch in range(min(epochs, _EPOCHS))]
    told = ", ".join(
        f"{epoch * each + step + 1}" if step is not None else f"none of epoch {epoch + 1}"
        for epoch, step in enumerate(steps)
    )
    more = f" and one or none of each of {epochs - _EPOCHS} more epochs" if epochs > _EPOCHS else ""
    return [f"  seen by training in steps {told}{more}, of {about['steps']}",
            f"  so in train/encoder.safetensors {about['sha256']}"]  # fmt: skip


def _places(results: Path, labels: Any) -> Any:
    """Return what says where the images of a chunk lie: own labels do it themselves."""
    from mlcd.data.embeddings import Embeddings

    return labels if labels.manifest else Embeddings(labels.embeddings_in(results))


def _scores(results: Path) -> list[str]:
    """Return lines on the scores that rest on the trained weights."""
    path = results / "evaluate" / "summary.csv"
    if not path.is_file():
        return []
    rows = [row for row in read_csv(path, "evaluate") if row["model"] == "trained"]
    told = [f"{row['dataset']} {row['metric']} {row['value']}" for row in rows]
    more = f", and {len(told) - _SCORES} more" if len(told) > _SCORES else ""
    return [f"  scores that rest on it: {', '.join(told[:_SCORES])}{more}"] if told else []


def score(results: Path, lock: dict[str, Any], name: str) -> list[str]:
    """Return lines on a score MODEL/DATASET/METRIC and what it rests on. Raises UserError."""
    rows = read_csv(results / "evaluate" / "summary.csv", "evaluate")
    found = [row for row in rows if f"{row['model']}/{row['dataset']}/{row['metric']}" == name]
    if not found:
        known = sorted({f"{row['model']}/{row['dataset']}/{row['metric']}" for row in rows})
        raise UserError(f"score:{name}: this run has none; it has {', '.join(known[:4])}, …")
    row = found[0]
    better = f"{row['better']} is better, " if row["better"] else ""
    lines = [f"{name}: {row['value']}, {better}seed {row['seed']}"]
    path = f"evaluate/{row['model']}.json"
    if not (results / path).is_file():
        return [*lines, "computed from the labels of the data set alone"]
    about = read_record(results / path, "evaluate")["datasets"].get(row["dataset"], {})
    if images := about.get("images"):
        failed = sum(images["failed"].values())
        lines.append(
            f"on {images['test']} test images and {images['train']} of train; {failed} lost"
        )
    if row["encoder_sha256"]:
        lines.append(f"of the weights {row['encoder_sha256']}")
    return lines + lineage(results, lock, path)


def cluster(results: Path, number: int) -> list[str]:
    """Return lines on one cluster: its size, and the images nearest to its center."""
    from mlcd.data.centroids import Centroids
    from mlcd.data.embeddings import Embeddings
    from mlcd.data.labels import Labels, of_run

    centers = Centroids(results / "clusters" / "centroids.h5")
    if not 0 <= number < centers.K:
        raise UserError(f"cluster {number}: there are {centers.K}, counted from 0")
    near: list[tuple[float, str]] = []
    count = others = 0
    for path in of_run(results):
        labels = Labels(path)
        label = labels.label()
        rows = (label[:, 0] == number).nonzero()[0]
        count += len(rows)
        others += int((label[:, 1:] == number).any(1).sum())
        cosine = labels.similarity()[:, 0]
        best = sorted(rows.tolist(), key=lambda row: -float(cosine[row]))[:_IMAGES]
        if best:
            vectors = labels.embeddings_in(results)
            keys = Embeddings(vectors).keys() if vectors.is_file() else None
            for row in best:
                name = keys[row].decode() if keys is not None else f"row {row}"
                near.append((-float(cosine[row]), f"{path.stem}/{name}"))
    lines = [
        f"cluster {number} of {centers.K}: {int(centers.sizes[number])} images in the last pass",
        f"its center is row {number} of clusters/centroids.h5 {centers.fingerprint}",
        f"a further label of {others} images, and first label of {count}; nearest (cosine):",
    ]
    return lines + [f"  {name} ({-cosine:.3f})" for cosine, name in sorted(near)[:_IMAGES]]

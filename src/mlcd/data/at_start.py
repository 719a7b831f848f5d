"""What can be known of a config before any work: names, files, and numbers that must fit.

A mistake that a stage would find costs what came before it, hours at scale. So whatever can be told
without the stages' work is told when the workflow is read; nothing heavy is imported.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlcd.config import Config, encoders
from mlcd.config.files import Origins, key_of, quoted
from mlcd.data import columns, initial_files, own_figures
from mlcd.data.labeled import layout, prompts
from mlcd.data.own import checks as own
from mlcd.data.url_lists import Chunk
from mlcd.utils.disk import existing
from mlcd.utils.errors import UserError

#: A problem: the path of its key, and what is wrong.
Problem = tuple[tuple[str, ...], str]


def check(
    config: Config,
    source: str | Origins,
    cut: Callable[[], dict[str, Chunk]],
    *,
    look: bool = True,
) -> dict[str, Chunk]:
    """Return the chunks of the run, name → :class:`Chunk`, as `cut` gives them.

    `source` names the config file, for each key its own if it is an :class:`Origins`. Without
    `look` the heads of lists and tables are not read: the main process did it before its jobs, of
    which each asks again. Raises :class:`UserError` with one line for each problem: its file, its
    key, how to fix it.
    """
    chunks: dict[str, Chunk] = {}
    lines = []

    def named(key: Sequence[str]) -> str:
        return source if isinstance(source, str) else source(key)

    def looked(at: Callable[[], object]) -> None:
        try:
            at()
        except UserError as error:
            told = str(error)
            # Files are named by their own paths.
            key = key_of(told)
            lines.append(f"{named(key)}: {told}" if key else told)

    looked(lambda: chunks.update(cut()))
    for dataset in config.evaluate.datasets:
        looked(lambda dataset=dataset: layout.check(dataset))  # type: ignore[misc]
    looked(lambda: prompts.check(config.evaluate))
    looked(lambda: own.check(config, chunks))
    if look:
        looked(lambda: columns.check(config, chunks))
        looked(lambda: columns.check_boxes(config, chunks))
    found = [*_results(config), *_frozen(config), *_regions(config), *_trained(config)]
    found += _exports(config)
    if look:
        found += _figures(config)
    if chunks:
        on_disk = any(chunk.identity for chunk in chunks.values())
        rows = sum(chunk.rows for chunk in chunks.values())
        found += _numbers(config, rows, on_disk=on_disk)
    for key, problem in found:
        lines.append(f"{named(key)}: {'.'.join(key)}: {problem}")
    if lines:
        raise UserError("\n".join(lines))
    return chunks


def batch_problem(batch: int, nodes: int, ranks_per_node: int, micro_batch: int) -> str | None:
    """Return why so many ranks cannot divide a batch, and micro-batches a rank's share, or None."""
    ranks = nodes * ranks_per_node
    if ranks < 1 or batch % ranks:
        return (
            f"{batch} does not divide by {nodes} × {ranks_per_node} ranks; change it, or the ranks"
        )
    if micro_batch and (batch // ranks) % micro_batch:
        return (
            f"{batch} gives each of {ranks} ranks {batch // ranks} images, which micro-batches of "
            f"{micro_batch} do not divide; change one of them"
        )
    return None


def _results(config: Config) -> Iterator[Problem]:
    """Look whether the results' folder can be made.

    Whether it may be written to is asked where that is going to happen: old results may be looked
    at on a disk that may only be read.
    """
    key = ("results",)
    folder = Path(config.results).absolute()
    if folder == Path(folder.anchor):
        yield key, f"{config.results} is the root of all files; name a folder below it"
        return
    try:
        folder.exists()
    except OSError as error:  # a name that is too long
        yield key, f"{quoted(config.results)}: {error.strerror}; name another folder"
        return
    if not (nearest := existing(folder)).is_dir():
        yield key, f"{nearest} is a file; name a folder"


def _frozen(config: Config) -> Iterator[Problem]:
    """Look at the frozen encoder: its name, its weights, its size, its text tower."""
    section = config.embed
    model, weights = section.model, section.pretrained
    if section.embeddings is not None or config.label.labels is not None:
        used = "frozen" in config.evaluate.models and config.evaluate.datasets
        if not used and not (config.ablate.grids and "frozen" in config.ablate.baselines):
            return
    if problem := encoders.frozen_problem(model):
        yield ("embed", "model"), problem
    elif model == encoders.PACKAGED:
        if weights is not None:
            yield ("embed", "pretrained"), f"{model} has the weights of its package; set it to null"
        if section.features != "image":
            problem = f"{model} has no text tower; set it to image, or name an open_clip model"
            yield ("embed", "features"), problem
    elif not model.startswith(encoders.SCHEMES):
        least = encoders.patch_of(f"{encoders.OPEN_CLIP}{model}") or 0
        if section.image_size is not None and section.image_size < least:
            problem = f"{section.image_size} is less than a patch of {model}, {least}; raise it"
            yield ("embed", "image_size"), problem
        tags = encoders.open_clip_tags().get(model.replace("/", "-"), set())
        if weights and weights.lower().replace("-", "_") not in tags and not _readable(weights):
            problem = f"{quoted(weights)} is neither a tag of {model} nor a file that can be read; "
            problem += "correct it, or fetch the file first"
            yield ("embed", "pretrained"), problem + _known(tags)


def _known(tags: set[str]) -> str:
    return f" (its tags: {', '.join(sorted(tags))})" if tags else ""


def _regions(config: Config) -> Iterator[Problem]:
    """Look whether what proposes regions is installed."""
    if config.regions.source == "felzenszwalb" and importlib.util.find_spec("skimage") is None:
        problem = "felzenszwalb needs scikit-image, which is not installed; "
        yield ("regions", "source"), problem + "pip install 'mlcd[regions]', or bring boxes"


def _trained(config: Config) -> Iterator[Problem]:
    """Look at the trained encoder: its name, its sizes, and whether it has stochastic depth."""
    section = config.train
    if problem := encoders.trained_problem(section.model):
        yield ("train", "model"), problem
        return
    sizes = {"image_size": section.image_size, "high_res_image_size": section.high_res_image_size}
    for name, size in sizes.items():
        if size is not None and (problem := encoders.size_problem(section.model, size)):
            yield ("train", name), problem
    if section.initial:
        yield from _initial(config)
    if section.drop_path and not encoders.may_have_drop_path(section.model):
        yield ("train", "drop_path"), f"{section.model} has no stochastic depth; set it to 0"


def _initial(config: Config) -> Iterator[Problem]:
    """Look at the encoder's first weights, as far as their names and first bytes tell."""
    key, initial = ("train", "initial"), config.train.initial
    if initial is None:
        return
    if problem := initial_files.problem(initial, config.train.model):
        yield key, problem
        return
    written = Path(config.results, "train").resolve()
    for path in initial_files.files(initial, config.train.model)[:1]:
        if path.resolve().is_relative_to(written):
            yield key, f"{path} is what this run writes; set another results, or copy it first"


def _exports(config: Config) -> Iterator[Problem]:
    if "transformers" not in config.export.formats:
        return
    key = ("export", "formats")
    if importlib.util.find_spec("transformers") is None:
        yield key, "transformers is not installed; pip install 'mlcd[transformers]'"
    model = config.train.model
    if model.startswith(encoders.OPEN_CLIP) and not encoders.is_clip(
        model.removeprefix(encoders.OPEN_CLIP)
    ):
        yield key, f"transformers cannot load {model}, which has not CLIP's blocks; use open_clip"


def _figures(config: Config) -> Iterator[Problem]:
    """Look at the figures that the report is to show."""
    for path in config.report.figures:
        if problem := own_figures.problem(path):
            yield ("report", "figures"), problem


def _numbers(config: Config, rows: int, *, on_disk: bool) -> Iterator[Problem]:
    """Compare what needs that many images with the `rows` of the lists, of which none is sure.

    `on_disk`: some images are, and may have captions beside them.
    """
    needs = {("cluster", "k"): config.cluster.k, ("train", "batch_size"): config.train.batch_size}
    if config.cluster.centers is not None or config.label.labels is not None:
        # Nothing is clustered.
        del needs["cluster", "k"]
    if config.text.enabled:
        needs["text", "batch_size"] = config.text.batch_size
        if config.prepare.caption_column is None and not on_disk:
            yield (
                ("text", "enabled"),
                "no image has a caption: name their column of the lists as prepare.caption_column",
            )
    # Regions are clustered beside the images.
    rows_of = {"curate": rows, "train": rows, "text": rows}
    more = config.regions.most if config.regions.source else 0
    cells = [cell.k for cell, _ in config.ablate.runs(config.own_cell)]
    needs["ablate", "grids"] = max(cells, default=0)
    if config.curate.enabled:
        needs["curate", "clusters"] = config.curate.clusters
    for key, number in needs.items():
        if number > rows_of.get(key[0], rows * (1 + more)):
            what = "K = " if key[0] == "ablate" else ""
            yield key, f"{what}{number} is more than the {rows} rows of the lists; lower it"


def _readable(path: str) -> bool:
    try:
        return Path(path).is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False

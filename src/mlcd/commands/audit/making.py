"""How each file of a run is made: the command of its stage, from recorded inputs and sections.

A making is one command and the files that it writes. Files from outside (lists, centers) are
looked for where the run had them, and taken only if they have the hash that was sealed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.commands.audit.recorded import Cannot, Recorded
from mlcd.config.evaluate import OWN_PARTS
from mlcd.data import hdf5
from mlcd.utils.records import read_record


@dataclasses.dataclass(frozen=True)
class Making:
    """What one command writes: `kind` of files, `name` among that kind (a chunk, a data set)."""

    kind: str
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Command:
    """`mlcd STAGE WORDS --output OUTPUT --config SECTION`; `output` is below the results."""

    stage: str
    words: list[str]
    section: str
    output: str


def making_of(path: str) -> Making | None:
    """Return the making of a file below the results; None where no stage can be run for it."""
    place = PurePosixPath(path)
    first, stem = place.parts[0], place.stem
    if first == "curate":
        return _curated(place)
    if first == "regions":
        return Making("labels of regions" if len(place.parts) == 3 else first, stem)
    if first == "ocr":
        return Making(f"ocr {place.parts[1]}" if len(place.parts) == 3 else "ocr words", stem)
    if first in ("urls", "embeddings"):
        return Making(first, stem)
    if first == "images" and len(place.parts) == 3:
        return Making(first, place.parts[1])
    if first == "clusters" and stem in ("centroids", "iterations"):
        return Making(first)
    if first == "labels":
        return Making("summary of labels") if place.suffix == ".json" else Making(first, stem)
    # How many scores came while it trained is the machine's to say.
    if first in ("train", "text") and len(place.parts) == 2 and stem not in ("accepted", "live"):
        return Making(first)
    if first == "text" and len(place.parts) == 3:
        return Making(f"text {place.parts[1]}", stem)
    if first == "evaluate":
        return _scores(place)
    return Making("export", place.parts[1]) if first == "export" else None


def _curated(place: PurePosixPath) -> Making:
    if len(place.parts) == 3 and place.parts[1] != "rows":
        return Making(f"curated {place.parts[1]}", place.stem)
    return Making("choice" if place.stem not in ("centroids", "iterations") else "coarse clusters")


def _scores(place: PurePosixPath) -> Making:
    if place.parent.name == "features":
        model, _, dataset = place.stem.partition("-")
        return Making(f"features of {model}", dataset)
    if place.parent.name in OWN_PARTS:
        model, _, dataset = place.stem.partition("-")
        return Making(f"{place.parent.name} of {model}", dataset)
    if place.parent.name == "texts":
        return Making("texts", place.stem)
    if place.stem == "summary":
        return Making("summary of scores")
    return Making("scores", place.stem)


def command(run: Recorded, making: Making, scratch: Path) -> Command:
    """Return what makes these files again. Raises :class:`Cannot`."""
    kind = making.kind
    part, _, model = kind.partition(" of ")
    if part in OWN_PARTS:
        return _own_part(run, part, model, making.name)
    if kind.startswith("features of "):
        return _features(run, kind.removeprefix("features of "), making.name)
    return _COMMANDS[kind](run, making.name, scratch)


def _as(run: Recorded, stage: str, words: list[str], output: str, **changes: Any) -> Command:
    section = {**run.section(stage), **changes}
    return Command(stage, words, json.dumps(section), output)


def _urls(run: Recorded, chunk: str, scratch: Path) -> Command:
    about = read_record(run.results / "urls" / f"{chunk}.json", "prepare")
    source = run.outside(Path(str(about["source"])).name, scratch, str(about.get("list")))
    index = chunk.rpartition("-")[2]
    words = ["--metadata", str(source), "--chunk-index", index]
    return _as(run, "prepare", words, f"urls/{chunk}.parquet")


def _images(run: Recorded, chunk: str, scratch: Path) -> Command:
    urls = run.results / "urls" / f"{chunk}.parquet"
    words = ["--urls", str(urls), "--processes", "1", "--threads", "32"]
    # What is gone is counted afterwards, and not refused.
    return _as(run, "download", words, f"images/{chunk}", min_success=0)


def _embeddings(run: Recorded, chunk: str, scratch: Path) -> Command:
    if run.section("embed").get("embeddings"):
        raise Cannot("own embeddings, which came from outside")
    words = ["--images", _manifest(run, chunk), "--threads", "1"]
    return _as(run, "embed", words, f"embeddings/{chunk}.h5")


def _clusters(run: Recorded, name: str, scratch: Path) -> Command:
    section = run.section("cluster")
    output = "clusters/centroids.h5"
    if section.get("centers"):
        centers = run.outside(Path(section["centers"]).name, scratch)
        return _as(run, "cluster", ["--centers", str(centers)], output)
    attributes, _ = hdf5.attributes(run.results / output)
    made = run.named(*run.clustered[:1], json.loads(str(attributes["embeddings"])),
                     *run.clustered[1:])  # fmt: skip
    words = ["--embeddings", *made]
    if section.get("initial"):
        words.append(f"--initial={run.outside(Path(section['initial']).name, scratch)}")
    return _as(run, "cluster", words, output)


def _labels(run: Recorded, chunk: str, scratch: Path) -> Command:
    if run.section("label").get("labels"):
        raise Cannot("own labels, which came from outside")
    vectors = run.results / run.embeddings / f"{chunk}.h5"
    words = ["--embeddings", str(vectors), *_centroids(run)]
    return _as(run, "label", words, f"labels/{chunk}.h5")


def _regions(run: Recorded, chunk: str, scratch: Path) -> Command:
    section = run.section("regions")
    words = ["--images", _manifest(run, chunk), "--threads", "1",
             "--embeddings", str(run.results / run.embeddings / f"{chunk}.h5"),
             "--embed-config", json.dumps(run.section("embed"))]  # fmt: skip
    if section.get("tables"):
        raise Cannot("boxes of tables, which came from outside")
    if section.get("column"):
        words += _list_of(run, chunk, scratch)
    return _as(run, "regions", words, f"regions/{chunk}.h5")


def _list_of(run: Recorded, chunk: str, scratch: Path) -> list[str]:
    """Return the options that say which list a chunk is of, and where it lies in it."""
    about = read_record(run.results / "urls" / f"{chunk}.json", "prepare")
    source = run.outside(Path(str(about["source"])).name, scratch, str(about.get("list")))
    return ["--metadata", str(source),
            "--list-rows", f"{about['start']}:{about['stop']}",
            f"--url-column={run.section('prepare')['url_column']}"]  # fmt: skip


def _labels_of_regions(run: Recorded, chunk: str, scratch: Path) -> Command:
    words = ["--embeddings", str(run.results / "regions" / f"{chunk}.h5"), *_centroids(run)]
    return _as(run, "label", words, f"regions/labels/{chunk}.h5")


def _label_summary(run: Recorded, name: str, scratch: Path) -> Command:
    about = read_record(run.results / "labels" / "summary.json", "label")
    labels = run.named("labels", about["made_from"]["labels"])
    words = ["--summarize", *labels, *_centroids(run)]
    return _as(run, "label", words, "labels/summary.json")


def _train(run: Recorded, name: str, scratch: Path) -> Command:
    labels = _trained_on(run)
    names = [Path(path).stem for path in labels]
    words = ["--labels", *labels, "--images", *(_manifest(run, name) for name in names)]
    if not run.section("label").get("labels"):
        vectors = (str(run.results / run.embeddings / f"{name}.h5") for name in names)
        words += ["--embeddings", *vectors]
    if run.section("train").get("regions") == "boxes":
        for option, folder in (
            ("--region-embeddings", "regions"),
            ("--region-labels", "regions/labels"),
        ):
            words += [option, *(str(run.results / folder / f"{name}.h5") for name in names)]
    if run.section("train").get("ocr_weight"):
        read = (str(run.results / "ocr" / "labels" / f"{name}.h5") for name in names)
        words += ["--ocr-labels", *read]
    return _as(run, "train", [*words, *_centroids(run), *_gang(run, "train")], "train")


def _text_embeddings(run: Recorded, chunk: str, scratch: Path) -> Command:
    from mlcd.config import Embed

    section = Embed.model_validate(run.section("embed")).for_trained_encoder()
    words = ["--images", _manifest(run, chunk), *_encoder(run), "--threads", "1"]
    return Command("embed", words, section, f"text/embeddings/{chunk}.h5")


def _captions(run: Recorded, chunk: str, scratch: Path) -> Command:
    vectors = run.results / run.text_embeddings / f"{chunk}.h5"
    words = ["--part", "captions", "--embeddings", str(vectors),
             "--images", _manifest(run, chunk)]  # fmt: skip
    return _as(run, "text", words, f"text/captions/{chunk}.h5")


def _text(run: Recorded, name: str, scratch: Path) -> Command:
    made = read_record(run.results / "text" / "text.json", "text")["made_from"]
    words = ["--embeddings", *run.named(run.text_embeddings, made["embeddings"])]
    words += ["--captions", *run.named("text/captions", made["captions"])]
    return _as(run, "text", [*words, *_gang(run, "text")], "text")


def _features(run: Recorded, model: str, dataset: str) -> Command:
    words = ["--part", "features", "--model", model, "--dataset", dataset]
    if model == "frozen":
        words += ["--embed-config", json.dumps(run.section("embed"))]
    elif model != "pixels":
        words += _encoder(run)
    output = f"evaluate/features/{model}-{dataset}.h5"
    return _as(run, "evaluate", words, output)


def _own_part(run: Recorded, part: str, model: str, dataset: str) -> Command:
    output = f"evaluate/{part}/{model}-{dataset}.json"
    words = ["--part", part, "--model", model, "--dataset", dataset, f"--device={run.device()}"]
    if model == "frozen":
        words += ["--embed-config", json.dumps(run.section("embed"))]
    else:
        words += _encoder(run)
    if threads := read_record(run.results / output, "evaluate").get("threads"):
        words += ["--threads", str(threads)]
    return _as(run, "evaluate", words, output)


def _texts(run: Recorded, dataset: str, scratch: Path) -> Command:
    words = ["--part", "texts", "--dataset", dataset, *_tower(run)]
    return _as(run, "evaluate", words, f"evaluate/texts/{dataset}.h5")


def _metrics(run: Recorded, model: str, scratch: Path) -> Command:
    here = run.results / "evaluate"
    made = read_record(here / f"{model}.json", "evaluate").get("made_from", {})
    # One thread, as the rule has it: the fit of a probe sums over threads.
    words = ["--part", "metrics", "--threads", "1", "--model", model]
    for kind, folder in (("features", "evaluate/features"), ("more", "evaluate")):
        if paths := run.named(folder, made.get(kind, [])):
            words += [f"--{kind}", *paths]
    if made.get("text"):
        words += _tower(run)
    if made.get("texts"):
        words += ["--texts", *run.named("evaluate/texts", made["texts"])]
    return _as(run, "evaluate", words, f"evaluate/{model}.json")


def _score_summary(run: Recorded, name: str, scratch: Path) -> Command:
    models = run.section("evaluate")["models"]
    paths = [str(run.results / "evaluate" / f"{model}.json") for model in models]
    words = ["--part", "summary", "--metrics", *paths, "--figures", json.dumps(_figures(run))]
    return _as(run, "evaluate", words, "evaluate/summary.csv")


def _figures(run: Recorded) -> list[dict[str, Any]]:
    """Return the paper's figures that the run's config asked for."""
    if run.section("evaluate").get("published") is None:
        return []
    from mlcd.config import SECTIONS, Config, comparison

    sections = {name: about["section"] for name, about in run.stages.items()
                if name in SECTIONS and about.get("section")}  # fmt: skip
    return comparison.figures(Config.model_validate({"metadata": ["any"], **sections}))


def _export(run: Recorded, form: str, scratch: Path) -> Command:
    labels, summary = _trained_on(run), run.results / "evaluate/summary.csv"
    records = (run.results / "urls" / f"{Path(path).stem}.json" for path in labels)
    # The name alone is used; and a stranger's record gives no options to the command.
    sources = (Path(str(read_record(path, "prepare")["source"])).name for path in records)
    lists = dict.fromkeys(f"./{name}" for name in run.lists() or sources)
    words = [*_encoder(run), *_centroids(run), "--lists", *lists]
    words += ["--labels", *labels[:1]] if labels else []
    words += ["--summary", str(summary)] if summary.is_file() else []
    found = _as(run, "export", words, f"export/{form}", formats=[form])
    return dataclasses.replace(found, output="export")


def _manifest(run: Recorded, chunk: str) -> str:
    return str(run.results / "images" / chunk / "manifest.json")


def _centroids(run: Recorded) -> list[str]:
    path = run.results / "clusters" / "centroids.h5"
    return ["--centroids", str(path)] if path.is_file() else []


def _encoder(run: Recorded) -> list[str]:
    return ["--encoder", str(run.results / "train")]


def _tower(run: Recorded) -> list[str]:
    return ["--text", str(run.results / "text"), *_encoder(run)]


def _gang(run: Recorded, stage: str) -> list[str]:
    ranks = run.stages[stage].get("how", {}).get("ranks", 1)
    return [f"--ranks-per-node={ranks}", "--threads=1", f"--device={run.device()}"]


def _trained_on(run: Recorded) -> list[str]:
    """Return the labels that the encoder was trained on, sorted by chunk.

    As its description names them, for the folder may hold more: a list that was taken out of the
    config leaves files of its chunks behind.
    """
    made = read_record(run.results / "train" / "encoder.json", "train").get("made_from", {})
    return run.named("labels", made.get("labels", []))


def _coarse(run: Recorded, name: str, scratch: Path) -> Command:
    output = "curate/centroids.h5"
    attributes, _ = hdf5.attributes(run.results / output)
    made = run.named("embeddings", json.loads(str(attributes["embeddings"])))
    return Command("cluster", ["--embeddings", *made], str(attributes["section"]), output)


def _facts(run: Recorded, chunk: str, scratch: Path) -> Command:
    section = run.section("curate")
    words = ["--part", "facts", "--images", _manifest(run, chunk), "--threads", "1",
             "--embeddings", str(run.results / "embeddings" / f"{chunk}.h5"),
             "--centroids", str(run.results / "curate" / "centroids.h5")]  # fmt: skip
    if section.get("columns"):
        raise Cannot("conditions on tables, which came from outside")
    if section.get("where"):
        words += _list_of(run, chunk, scratch)
    return _as(run, "curate", words, f"curate/facts/{chunk}.h5")


def _choice(run: Recorded, name: str, scratch: Path) -> Command:
    made = read_record(run.results / "curate" / "summary.json", "curate")["made_from"]["facts"]
    facts = run.named("curate/facts", made)
    vectors = (str(run.results / "embeddings" / Path(path).name) for path in facts)
    words = ["--part", "choice", "--embeddings", *vectors, "--facts", *facts]
    return _as(run, "curate", words, "curate")


def _kept(folder: str) -> Callable[[Recorded, str, Path], Command]:
    """Return the command for the kept embeddings of a chunk, from those in `folder`."""

    def command(run: Recorded, chunk: str, scratch: Path) -> Command:
        words = ["--part", "kept", "--embeddings", str(run.results / folder / f"{chunk}.h5"),
                 "--rows", str(run.results / "curate" / "rows" / f"{chunk}.h5")]  # fmt: skip
        output = "curate/embeddings" if folder == "embeddings" else "text/curated"
        return _as(run, "curate", words, f"{output}/{chunk}.h5")

    return command


def _ocr_text(run: Recorded, chunk: str, scratch: Path) -> Command:
    # The rows that were read: own labels, or embeddings.
    attributes, _ = hdf5.attributes(run.results / "ocr" / "text" / f"{chunk}.h5")
    own = run.section("label").get("labels")
    (rows,) = run.named("labels" if own else run.embeddings, [str(attributes["embeddings"])])
    words = ["--part", "text", "--rows", rows, "--images", _manifest(run, chunk), "--threads", "1"]
    return _as(run, "ocr", words, f"ocr/text/{chunk}.h5")


def _ocr_words(run: Recorded, name: str, scratch: Path) -> Command:
    made = read_record(run.results / "ocr" / "vocabulary.json", "ocr")["made_from"]["text"]
    words = ["--part", "vocabulary", "--text", *run.named("ocr/text", made)]
    return _as(run, "ocr", words, "ocr/vocabulary.json")


def _ocr_labels(run: Recorded, chunk: str, scratch: Path) -> Command:
    folder = run.results / "ocr"
    words = ["--part", "labels", "--text", str(folder / "text" / f"{chunk}.h5"),
             "--vocabulary", str(folder / "vocabulary.json")]  # fmt: skip
    return _as(run, "ocr", words, f"ocr/labels/{chunk}.h5")


_COMMANDS: dict[str, Callable[[Recorded, str, Path], Command]] = {
    "urls": _urls, "images": _images, "embeddings": _embeddings, "clusters": _clusters,
    "labels": _labels, "summary of labels": _label_summary, "train": _train,
    "text embeddings": _text_embeddings, "text captions": _captions, "text": _text,
    "regions": _regions, "labels of regions": _labels_of_regions,
    "coarse clusters": _coarse, "curated facts": _facts, "choice": _choice,
    "curated embeddings": _kept("embeddings"), "text curated": _kept("text/embeddings"),
    "ocr text": _ocr_text, "ocr words": _ocr_words, "ocr labels": _ocr_labels,
    "texts": _texts, "scores": _metrics, "summary of scores": _score_summary, "export": _export,
}  # fmt: skip

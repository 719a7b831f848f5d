"""One small run's stores, as every part of the report reads them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.ablate_runs import ablation_words
from helpers.builders import csv_table, embeddings_file, image_store, jpeg, unit_vectors
from mlcd.cli import main
from mlcd.data import hdf5
from mlcd.data.embeddings import Embeddings
from mlcd.utils.records import write_record

CHUNKS = ("first-00000", "first-00001", "second-00000")
N, K, L = 10, 4, 3
#: What a stranger may write into a caption.
HOSTILE = "<script>alert('x')</script> \"&amp; $\\alpha$ {{ 7 * 7 }}"


#: A figure of someone else's, which would run a script and fetch an image.
FIGURE = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20" width="40">'
    '<script>document.title = "ran"</script><rect width="40" height="20" fill="teal"/>'
    '<image href="http://example.org/pixel.png" width="9" height="9"/></svg>'
)


class Stores:
    """Files of a run with three chunks of ten images, below `folder`."""

    def __init__(self, folder: Path, images: list[bytes] | None = None) -> None:
        self.folder = folder
        images = images or [jpeg(i) for i in range(len(CHUNKS) * N)]
        rows = unit_vectors(len(images), 8, groups=K, seed=3)
        centers = unit_vectors(K, 8, seed=5)
        cosine = rows @ centers.T
        top = np.argsort(-cosine, axis=1, kind="stable")[:, :L].astype(np.int32)
        self.similarity = np.take_along_axis(cosine, top, axis=1).astype(np.float16)
        self.label = top
        self.captions = [f"image {i}" for i in range(len(images))]
        self.captions[0] = HOSTILE
        self.centroids = folder / "clusters" / "centroids.h5"
        datasets = {
            "centroid": centers,
            "size": np.bincount(top[:, 0], minlength=K).astype(np.int64),
            "objective": np.array([0.4, 0.6, 0.61]),
            "empty": np.array([1, 0, 0]),
        }
        model = json.dumps({"name": "test", "dim": 8})
        attributes = {"model": model, "embeddings": "[]", "section": "{}"}
        hdf5.write(self.centroids, "centroids", datasets, attributes)
        self.images, self.embeddings, self.labels = [], [], []
        for index, chunk in enumerate(CHUNKS):
            part = slice(index * N, (index + 1) * N)
            manifest = image_store(
                folder / "images" / chunk, images[part], captions=self.captions[part]
            )
            embeddings = embeddings_file(
                folder / "embeddings" / f"{chunk}.h5", rows[part], manifest=manifest
            )
            labels = folder / "labels" / f"{chunk}.h5"
            hdf5.write(
                labels,
                "labels",
                {
                    "label": top[part],
                    "similarity": self.similarity[part],
                    "gap": self.similarity[part, -1],
                },
                {
                    "chunk": chunk,
                    "num_classes": K,
                    "embeddings": hdf5.fingerprint(embeddings),
                    "centroids": hdf5.fingerprint(self.centroids),
                    "section": "{}",
                },
            )
            self.images.append(manifest)
            self.embeddings.append(embeddings)
            self.labels.append(labels)
        self.rows, self.curation = write_decisions(folder / "curate", self.embeddings)
        self.summary = folder / "labels" / "summary.json"
        assert not main(
            ["label", "--summarize", *map(str, self.labels), "--centroids", str(self.centroids),
             "--device", "cpu", "--threads", "1", "--output", str(self.summary)]
        )  # fmt: skip
        self.metrics = folder / "train" / "metrics.jsonl"
        self.metrics.parent.mkdir()
        self.metrics.write_text("".join(f"{json.dumps(step(i))}\n" for i in range(10, 210, 10)))
        self.text_metrics = folder / "text" / "metrics.jsonl"
        self.text_metrics.parent.mkdir()
        self.text_metrics.write_text(
            "".join(f"{json.dumps(text_step(i))}\n" for i in range(10, 210, 10))
        )
        self.scores = folder / "evaluate" / "summary.csv"
        self.scores.parent.mkdir()
        lines = ["model,dataset,metric,value,seed"]
        for model, base in (("trained", 0.3), ("pixels", 0.1), ("random", 0.2), ("frozen", 0.5)):
            for metric in ("knn_10", "probe"):
                lines += [
                    f"{model},few,{metric},{base + 0.01 * seed:.3f},{seed}" for seed in (0, 1)
                ]
        csv_table(self.scores, "\n".join(lines))
        self.snakemake = folder / ".snakemake"
        write_snakemake_log(self.snakemake, folder)
        self.ablation = folder / "ablate" / "table.csv"
        assert not main(["ablate", *ablation_words(folder)])
        self.resolved = folder / "report" / "config.yaml"
        self.resolved.parent.mkdir()
        self.resolved.write_text("cluster: {k: 4}\nlabel: {top: 3}\n")
        # Beside the results, in which only the run's own files lie.
        outside = folder.with_name(f"{folder.name}-figures")
        outside.mkdir()
        self.figures = [outside / "study.svg", outside / "seen.png"]
        self.figures[0].write_text(FIGURE)
        Image.new("RGB", (30, 20), "teal").save(self.figures[1])
        self.jobs = folder / "report" / "efficiency.csv"
        self.draw("efficiency", self.jobs)

    def options(self, part: str) -> list[str]:
        """Return the command line of `mlcd report` for a part, without its output."""
        images, embeddings, labels = (
            ["--images", *map(str, self.images)],
            ["--embeddings", *map(str, self.embeddings)],
            ["--labels", *map(str, self.labels)],
        )
        inputs = {
            "overview": [*images, *embeddings, *labels, "--centroids", str(self.centroids),
                         "--summary", str(self.summary), "--metrics", str(self.metrics),
                         "--scores", str(self.scores), "--resolved", str(self.resolved),
                         "--jobs", str(self.jobs)],
            "download": images,
            "curate": [*images, *embeddings, "--rows", *map(str, self.rows),
                       "--curation", str(self.curation)],
            "cluster": ["--centroids", str(self.centroids)],
            "label": ["--summary", str(self.summary)],
            "montage": [*images, *embeddings, *labels, "--centroids", str(self.centroids)],
            "examples": [*images, *embeddings, *labels],
            "train": ["--metrics", str(self.metrics)],
            "text": ["--metrics", str(self.text_metrics)],
            "results": ["--scores", str(self.scores)],
            "efficiency": ["--folder", str(self.folder), "--snakemake", str(self.snakemake)],
            "ablate": ["--ablation", str(self.ablation),
                       "--orders", str(self.ablation.with_name("orders.csv"))],
            "figures": ["--config", json.dumps({"figures": [*map(str, self.figures)]})],
            "provenance": ["--resolved", str(self.resolved), "--files", str(self.centroids),
                           str(self.scores)],
        }  # fmt: skip
        return ["report", "--part", part, *inputs[part]]

    def draw(self, part: str, *outputs: Path, extra: tuple[str, ...] = ()) -> str:
        """Run `mlcd report`; return the first output's text."""
        status = main([*self.options(part), "--output", *map(str, outputs), *extra])
        assert status == 0
        return outputs[0].read_text(encoding="utf-8", errors="replace")


def write_decisions(folder: Path, embeddings: list[Path]) -> tuple[list[Path], Path]:
    """Write decisions of stage curate: of each chunk a duplicate, and one that is refused."""
    reasons = [f"{HOSTILE} fails", "duplicate", "balance", "cap"]
    found = []
    for index, path in enumerate(embeddings):
        reason, stands_for = np.full(N, -1, np.int16), np.full((N, 2), -1, np.int64)
        reason[[2, 5]] = 1, 0
        stands_for[2] = (index + 1) % len(embeddings), 3
        datasets = {
            "key": Embeddings(path).keys(), "kept": (reason < 0).astype(np.uint8),
            "reason": reason, "stands_for": stands_for, "cluster": np.zeros(N, np.int32),
            "similarity": np.where(reason == 1, 0.97 - index / 100, 0).astype(np.float32),
            "chunk": np.array([other.stem.encode() for other in embeddings]),
        }  # fmt: skip
        attributes = {"chunk": path.stem, "manifest": "", "embeddings": hdf5.fingerprint(path)}
        found.append(folder / "rows" / path.name)
        hdf5.write(found[-1], "curation", datasets, {**attributes, "reasons": json.dumps(reasons)})
    summary = {
        "images": N * len(embeddings), "kept": (N - 2) * len(embeddings),
        "left_out": dict(zip(reasons, (3, 3, 0, 0), strict=True)),
        "duplicates": {"similarity": 0.95, "groups": 3, "largest": 2},
    }  # fmt: skip
    write_record(folder / "summary.json", summary)
    return found, folder / "summary.json"


def write_snakemake_log(snakemake: Path, results: Path) -> None:
    """Write a log as Snakemake's, of two jobs, one of which failed once, and benchmarks."""
    (snakemake / "log").mkdir(parents=True)
    block = """[Mon Nov 23 00:{minute:02d}:00 2026]
localrule embed:
    output: {results}/embeddings/{chunk}.h5
    jobid: {number}
    benchmark: {results}/benchmarks/embed/{chunk}.tsv
    wildcards: chunk={chunk}
    threads: 2
    resources: tmpdir=/tmp, mem_mb=1000, mem=1 GB, runtime=60
"""
    failed = """[Mon Nov 23 00:05:30 2026]
Error in rule embed:
    jobid: 1
    shell:
        mlcd embed
"""
    finished = "[Mon Nov 23 00:{minute:02d}:00 2026]\nFinished jobid: {number} (Rule: embed)\n"
    first, second = ({"results": results, "chunk": chunk} for chunk in CHUNKS[:2])
    (snakemake / "log" / "2026-11-23.snakemake.log").write_text(
        block.format(minute=1, number=1, **first)
        + failed
        + block.format(minute=6, number=1, **first)
        + finished.format(minute=9, number=1)
        + block.format(minute=10, number=2, **second)
        + finished.format(minute=12, number=2)
    )
    (results / "benchmarks" / "embed").mkdir(parents=True)
    header = ["s", "h:m:s", "max_rss", "max_vms", "max_uss", "max_pss", "io_in", "io_out",
              "mean_load", "cpu_time"]  # fmt: skip
    for chunk, seconds, memory, cpu in ((CHUNKS[0], 175.0, 800.0, 262.5), (CHUNKS[1], 115, 90, 23)):
        values = [seconds, "0:02:55", memory, 0, 0, 0, 0, 0, 0, cpu]
        (results / "benchmarks" / "embed" / f"{chunk}.tsv").write_text(
            "\t".join(header) + "\n" + "\t".join(map(str, values)) + "\n"
        )


def step(number: int) -> dict[str, float]:
    """Return one line of metrics.jsonl."""
    return {
        "step": number, "epoch": number // 100, "loss": 8 - number / 50,
        "positive_term": 5 - number / 100, "negative_term": 3 - number / 100,
        "lr": 1e-3, "classifier_lr": 1e-3, "grad_norm": 1.0 + number / 100,
        "classifier_grad_norm": 0.1, "images_per_s": 100.0, "data_wait_share": 0.05,
        "positive_similarity": number / 400, "negative_similarity": 0.0, "feature_cosine": 0.2,
    }  # fmt: skip


def text_step(number: int) -> dict[str, float]:
    """Return one line of the text tower's metrics.jsonl."""
    return {
        "step": number, "epoch": number // 100, "loss": 5.5 - number / 100,
        "accuracy": number / 400, "scale": 14.3 + number / 10, "lr": 1e-3,
        "grad_norm": 1.0 + number / 100, "pairs_per_s": 900.0, "data_wait_share": 0.01,
    }  # fmt: skip


class Outline(HTMLParser):
    """What a browser would find in a page: tags, addresses, text, alternative texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.alts, self.words = [], [], [], []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)


def cells(html: str) -> list[list[str]]:
    """Return the text of all table rows."""
    return [
        [cell.replace("\u00a0", " ") for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr.*?</tr>", html)
    ]

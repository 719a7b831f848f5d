"""Stage `evaluate`: how good are the features? k-NN, linear probe, retrieval on labeled images.

Six parts, which Snakemake runs as jobs of their own and `--part all` runs in turn:

    features   every image of one data set through one model, cached once    {model}-{dataset}.h5
    texts      captions of one data set through the text tower             {dataset}.h5
    finetune   the encoder trained on the classes of one data set  {model}-{dataset}.json
    dense      segmentation, regions, … by patch tokens            {model}-{dataset}.json
    metrics    k-NN, linear probe, retrieval, tags, texts on cached features       {model}.json
    summary    all models side by side                         summary.csv, summary.md, summary.svg

And one that stands by itself, on embeddings of images and of texts:

    image_text   R@1, 5, 10 and the median rank, both ways                      a .json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Evaluate

PARTS = ("features", "texts", "finetune", "dense", "metrics", "summary", "all", "image_text")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the part, its files and how wide it runs."""
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="all",
        help="features: one model on one data set; texts: captions of one data set through the "
        "text tower; finetune: one model trained on the classes of one data set; dense: one "
        "model's patch tokens on one data set; metrics: one model on its features; summary: all "
        "models; all: these in turn, features that exist being used again; image_text: retrieval "
        "between images and texts [all]",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="features, texts: the .h5; finetune, dense, metrics, image_text: the .json; summary: "
        "the .csv (.md and .svg beside it); all: a folder",
    )
    parser.add_argument(
        "--model", help="one of evaluate.models [features, finetune, dense, metrics]"
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="one of evaluate.datasets [features, texts, finetune, dense]",
    )
    parser.add_argument(
        "--encoder",
        metavar="DIR",
        help="results/train, for random and trained [features, finetune, dense, all], and to check "
        "that --text is its tower [texts, metrics, all]",
    )
    parser.add_argument(
        "--text",
        metavar="DIR",
        help="results/text, for zero_shot and image_text_retrieval [texts, metrics, all]",
    )
    parser.add_argument(
        "--embed-config",
        default="",
        metavar="FILE|JSON",
        help="config.yaml or the section embed as JSON, for frozen [features, finetune, dense, "
        "all]",
    )
    parser.add_argument(
        "--features", nargs="+", metavar="H5", help="features of one model [metrics]"
    )
    parser.add_argument(
        "--more",
        nargs="+",
        metavar="JSON",
        help="results of finetune and dense, of one model [metrics]",
    )
    parser.add_argument("--metrics", nargs="+", metavar="JSON", help="one per model [summary]")
    parser.add_argument(
        "--figures",
        default="",
        metavar="FILE|JSON",
        help="config.yaml whose evaluate.published names a run of the paper, or the figures as "
        "JSON, to stand beside ours [summary, all]",
    )
    parser.add_argument("--images", metavar="H5", help="embeddings of images [image_text]")
    parser.add_argument(
        "--texts",
        nargs="+",
        metavar="H5",
        help="embeddings of their texts [image_text]; of captions, for trained [metrics]",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images per forward pass [on GPUs what fits, up to 128; on CPUs 64; finetune: a whole "
        "step's]",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes cuda if there is [auto]"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads; 0: all [0]"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="threads that decode, in finetune processes; 0: as --threads [0]",
    )


def run(arguments: argparse.Namespace, section: Evaluate) -> None:
    """Run one part or all. Raises :class:`UserError` for what the user can fix."""
    import os

    import torch

    from mlcd.data.labeled import prompts
    from mlcd.data.labeled.samples import find
    from mlcd.stages.evaluate.caption_retrieval import texts_part
    from mlcd.stages.evaluate.parts import OF_ONE_SET, all_parts, load_tower
    from mlcd.stages.evaluate.resources import Resources
    from mlcd.stages.evaluate.retrieval import image_text_part
    from mlcd.stages.evaluate.scores import metrics_part
    from mlcd.stages.evaluate.summary import published_figures, summary_part
    from mlcd.utils.device import pick_device
    from mlcd.utils.ownership import claim
    from mlcd.utils.processes import check_workers

    for option in ("batch_size", "threads", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < (option == "batch_size"):
            raise UserError(
                f"--{option.replace('_', '-')}: {getattr(arguments, option)} is too low"
            )
    check_workers(arguments.workers)
    if arguments.part not in ("summary", "all"):  # these claim several files
        claim(arguments.output)
    if arguments.part in ("metrics", "all"):
        prompts.check(section)
    threads = arguments.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    resources = Resources(
        device=pick_device(arguments.device),
        workers=arguments.workers or threads,
        batch_size=arguments.batch_size,
        threads=threads,
    )
    if arguments.part in OF_ONE_SET:
        OF_ONE_SET[arguments.part](
            section,
            resources,
            model=_needed(arguments, "model"),
            dataset=_needed(arguments, "dataset"),
            encoder=arguments.encoder,
            embed_config=arguments.embed_config,
            output=arguments.output,
        )
    elif arguments.part == "texts":
        dataset = find(section, _needed(arguments, "dataset"))
        tower = load_tower(_needed(arguments, "text"), arguments.encoder, resources.device)
        assert tower is not None
        texts_part(dataset, tower, arguments.output)
    elif arguments.part == "metrics":
        tower = load_tower(arguments.text, arguments.encoder, resources.device)
        features, more = arguments.features or (), arguments.more or ()
        texts = arguments.texts or ()
        if not (features or more or arguments.model):
            raise UserError("--features: needed for --part metrics, or --more; give one of them")
        metrics_part(
            section, features, arguments.output, resources.device, tower, texts, more,
            arguments.model,
        )  # fmt: skip
    elif arguments.part == "summary":
        figures = published_figures(arguments.figures)
        summary_part(_needed(arguments, "metrics"), arguments.output, figures)
    elif arguments.part == "image_text":
        images, texts = _needed(arguments, "images"), _needed(arguments, "texts")
        if len(texts) > 1:
            raise UserError("--texts: one file for --part image_text; give one")
        image_text_part(images, texts[0], arguments.output, resources.device)
    else:
        all_parts(
            section,
            resources,
            arguments.encoder,
            arguments.text,
            arguments.embed_config,
            published_figures(arguments.figures),
            Path(arguments.output),
        )


def _needed(arguments: argparse.Namespace, option: str) -> Any:
    value = getattr(arguments, option)
    if not value:
        raise UserError(f"--{option}: needed for --part {arguments.part}; give it")
    return value

"""Stage `text`: a text tower trained against the frozen encoder (LiT, arXiv 2111.07991).

Three rules: `text_embed` runs the program of stage embed with the trained encoder, `text_captions`
tokenizes the captions of the same images, `text` trains on the pairs. Read `task.py` first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlcd.config.text import Text
from mlcd.launch import options
from mlcd.stages.text.arguments import TextArguments
from mlcd.training import driver
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.ownership import claim

PARTS = ("tower", "captions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, ranks, and how often to save."""
    add = parser.add_argument
    add("--part", default="tower", choices=PARTS,
        help="captions: tokenize those of one chunk; tower: train [tower]")  # fmt: skip
    add("--embeddings", nargs="+", required=True, metavar="E.h5",
        help="embeddings by the trained encoder (mlcd embed --encoder), of all chunks; one chunk "
        "for captions")  # fmt: skip
    add("--images", metavar="MANIFEST", help="captions: manifest.json (or folder) of the chunk")
    add("--captions", nargs="+", default=[], metavar="T.h5",
        help="tower: captions of the same chunks, in the same order")  # fmt: skip
    add("--output", required=True, metavar="PATH",
        help="captions: the file; tower: folder for text.safetensors, text.json, metrics.jsonl, "
        "tensorboard/ and state/ (checkpoints)")  # fmt: skip
    options.add_arguments(parser, ranks_per_node=1)
    driver.add_arguments(parser, checkpoint_every=500)


def run(arguments: argparse.Namespace, section: Text) -> None:
    """Tokenize one chunk, or train on a gang of ranks; after an interruption it continues."""
    if arguments.part == "captions":
        from mlcd.stages.text.tokenize import write_captions

        if len(arguments.embeddings) != 1 or not arguments.images:
            raise UserError("--part captions: expected one --embeddings and its --images")
        claim(arguments.output)
        write_captions(arguments.embeddings[0], arguments.images, arguments.output, section)
        return
    from mlcd.stages.text.task import text_rank, write_tower

    output = Path(arguments.output)
    claim(*(output / name for name in ("text.safetensors", "text.json", "metrics.jsonl")))
    resources = options.resources(arguments)
    rank_arguments = plan(arguments, section, resources)
    driver.run(
        text_rank,
        rank_arguments,
        output,
        ("text.safetensors", "text.json"),
        resources,
        lambda checkpoint: write_tower(checkpoint, rank_arguments),
    )


def plan(
    arguments: argparse.Namespace, section: Text, resources: options.Resources
) -> TextArguments:
    """Check all inputs and return what every rank is told.

    Raises :class:`UserError` for anything that does not fit, before any rank starts.
    """
    from mlcd.data.captions import Captions
    from mlcd.data.embeddings import open_all

    driver.check_arguments(arguments)
    embeddings = open_all(arguments.embeddings)
    captions = [Captions(path) for path in arguments.captions]
    if len(embeddings) != len(captions):
        raise UserError(
            f"--captions: {len(captions)} files for {len(embeddings)} of --embeddings; "
            "name one for each"
        )
    for vectors, tokens in zip(embeddings, captions, strict=True):
        if tokens.embeddings != vectors.fingerprint:
            raise UserError(
                f"{tokens.path}: made for other embeddings than {vectors.path}; rerun text_captions"
            )
        if tokens.context_length != section.context_length:
            raise UserError(
                f"{tokens.path}: {tokens.context_length} tokens per caption, but "
                f"text.context_length is {section.context_length}; rerun text_captions"
            )
    total = sum(tokens.n for tokens in captions)
    if not total:
        raise UserError("--captions: no image has a caption; see prepare.caption_column")
    if total < section.batch_size:
        raise UserError(
            f"text.batch_size: {section.batch_size} pairs per step, but only {total} images have a "
            "caption; lower it"
        )
    driver.check_share("text", section.batch_size, resources.ranks)
    output = Path(arguments.output)
    # The code is no part of it: mlcd.launch.resume sees to what other code has saved.
    identity: list[Any] = [section.model_dump(mode="json")]
    made_from = {
        "embeddings": [file.fingerprint for file in embeddings],
        "captions": [file.fingerprint for file in captions],
    }
    identity += [*made_from["embeddings"], *made_from["captions"]]
    state = state_dir(output / "text.safetensors", *identity)
    return TextArguments(
        section=section,
        identity=sha256_json(identity),
        embeddings=[str(file.path.resolve()) for file in embeddings],
        captions=[str(file.path.resolve()) for file in captions],
        encoder_sha256=embeddings[0].model.get("weights_sha256", ""),
        embedding_dim=embeddings[0].d,
        made_from=made_from,
        state=state.resolve(),
        output=output.resolve(),
        device="cuda" if resources.gpus else "cpu",
        checkpoint_every=arguments.checkpoint_every,
        keep=arguments.keep,
    )

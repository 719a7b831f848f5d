"""Stage `text`: a text tower trained against the frozen encoder (LiT, arXiv 2111.07991).

Three rules: `text_embed` runs the program of stage embed with the trained encoder, `text_captions`
tokenises the captions of the same pictures, `text` trains on the pairs. Read `loop.py` first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlcd import launch
from mlcd.config.text import Text
from mlcd.errors import UserError
from mlcd.files import sha256_json, state_dir
from mlcd.sources import code_hash
from mlcd.training import gang

PARTS = ("tower", "captions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, ranks, and how often to save."""
    add = parser.add_argument
    add("--part", default="tower", choices=PARTS,
        help="captions: tokenise those of one chunk; tower: train [tower]")  # fmt: skip
    add("--embeddings", nargs="+", required=True, metavar="E.h5",
        help="embeddings by the trained encoder (mlcd embed --encoder), of all chunks; one chunk "
        "for captions")  # fmt: skip
    add("--images", metavar="MANIFEST", help="captions: manifest.json (or folder) of the chunk")
    add("--captions", nargs="+", default=[], metavar="T.h5",
        help="tower: captions of the same chunks, in the same order")  # fmt: skip
    add("--output", required=True, metavar="PATH",
        help="captions: the file; tower: folder for text.safetensors, text.json, metrics.jsonl, "
        "tensorboard/ and state/ (checkpoints)")  # fmt: skip
    launch.add_arguments(parser, ranks_per_node=1)
    gang.add_arguments(parser, checkpoint_every=500)


def run(arguments: argparse.Namespace, section: Text) -> None:
    """Tokenise one chunk, or train on a gang of ranks; after an interruption it goes on."""
    if arguments.part == "captions":
        from mlcd.text.captions import write_captions

        if len(arguments.embeddings) != 1 or not arguments.images:
            raise UserError("--part captions: expected one --embeddings and its --images")
        write_captions(arguments.embeddings[0], arguments.images, arguments.output, section)
        return
    from mlcd.text.loop import Run, text_rank, write_tower

    resources = launch.resources(arguments)
    rank_arguments = plan(arguments, section, resources)
    gang.run(
        text_rank,
        rank_arguments,
        Path(arguments.output),
        ("text.safetensors", "text.json"),
        resources,
        lambda checkpoint: write_tower(checkpoint, Run(**rank_arguments)),
    )


def plan(
    arguments: argparse.Namespace, section: Text, resources: launch.Resources
) -> dict[str, Any]:
    """Check all inputs and return the fields of :class:`mlcd.text.loop.Run`.

    Raises :class:`UserError` for anything that does not fit, before any rank starts.
    """
    from mlcd.stores.captions import Captions
    from mlcd.stores.embeddings import open_all

    gang.check_arguments(arguments)
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
                f"{tokens.path}: {tokens.context_length} tokens a caption, but text.context_length "
                f"is {section.context_length}; rerun text_captions"
            )
    total = sum(tokens.n for tokens in captions)
    if total < section.batch_size:
        raise UserError(
            f"text.batch_size: {section.batch_size} pairs a step, but only {total} pictures have a "
            "caption; lower it"
        )
    gang.check_share("text", section.batch_size, resources.ranks)
    output = Path(arguments.output)
    identity = [code_hash("text"), section.model_dump(mode="json")]
    identity += [file.fingerprint for file in (*embeddings, *captions)]
    state = state_dir(output / "text.safetensors", *identity)
    return {
        "section": section.model_dump(mode="json"),
        "identity": sha256_json(identity),
        "embeddings": [str(file.path.resolve()) for file in embeddings],
        "captions": [str(file.path.resolve()) for file in captions],
        "encoder_sha256": embeddings[0].model.get("weights_sha256", ""),
        "embedding_dim": embeddings[0].d,
        "state": str(state.resolve()),
        "output": str(output.resolve()),
        "device": "cuda" if resources.gpus else "cpu",
        "checkpoint_every": arguments.checkpoint_every,
        "keep": arguments.keep,
    }

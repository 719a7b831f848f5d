"""Stage `text`: a text tower trained against the frozen encoder (LiT, arXiv 2111.07991).

Three rules: `text_embed` runs the program of stage embed with the trained encoder, `text_captions`
tokenises the captions of the same pictures, `text` trains on the pairs. Read `loop.py` first.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from mlcd import launch, lease
from mlcd.config.text import Text
from mlcd.errors import UserError
from mlcd.files import atomic_path, sha256_json, state_dir
from mlcd.progress import LOGGER
from mlcd.sources import code_hash

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
    add("--checkpoint-every", type=int, default=500, metavar="N",
        help="steps between checkpoints [500]")  # fmt: skip
    add("--keep", type=int, default=2, metavar="N", help="checkpoints kept [2]")


def run(arguments: argparse.Namespace, section: Text) -> None:
    """Tokenise one chunk, or train on a gang of ranks; after an interruption it goes on."""
    if arguments.part == "captions":
        from mlcd.text.captions import write_captions

        if len(arguments.embeddings) != 1 or not arguments.images:
            raise UserError("--part captions: expected one --embeddings and its --images")
        write_captions(arguments.embeddings[0], arguments.images, arguments.output, section)
        return
    from mlcd.text.loop import text_rank

    resources = launch.resources(arguments)
    rank_arguments = plan(arguments, section, resources)
    output, state = Path(arguments.output), Path(rank_arguments["state"])
    files = [output / name for name in ("text.safetensors", "text.json", "metrics.jsonl")]
    with lease.writing(output, rank_arguments["identity"], files=files) as wanted:
        if not wanted:
            return
        before = [lease.stamp(path) for path in files[:2]]
        result = launch.run_gang(text_rank, {"run": rank_arguments}, state, resources)
        after = [lease.stamp(path) for path in files[:2]]
        if None in after or after == before:
            _write_again(state, rank_arguments)
        with atomic_path(files[2]) as temporary:
            shutil.copyfile(state / "metrics.jsonl", temporary)
    LOGGER.info("trained %d steps; wrote %s", result["steps"], files[0])


def _write_again(state: Path, rank_arguments: dict[str, Any]) -> None:
    """Write the tower of a gang that had finished before: its files may be gone or another's."""
    from mlcd.stores.checkpoints import newest
    from mlcd.text.loop import Run, write_tower

    checkpoint = newest(state / "checkpoints", rank_arguments["identity"])
    if checkpoint is None:
        raise UserError(f"{state}: the last checkpoint is gone; remove this folder and rerun")
    write_tower(checkpoint, Run(**rank_arguments))


def plan(
    arguments: argparse.Namespace, section: Text, resources: launch.Resources
) -> dict[str, Any]:
    """Check all inputs and return the fields of :class:`mlcd.text.loop.Run`.

    Raises :class:`UserError` for anything that does not fit, before any rank starts.
    """
    from mlcd.stores.captions import Captions
    from mlcd.stores.embeddings import open_all

    for option in ("checkpoint_every", "keep"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option.replace('_', '-')}: expected ≥ 1")
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
    if section.batch_size % resources.ranks:
        raise UserError(
            f"text.batch_size: {section.batch_size} does not divide by {resources.ranks} ranks; "
            "change it, or --ranks-per-node"
        )
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

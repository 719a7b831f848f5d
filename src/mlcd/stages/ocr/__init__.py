"""Stage `ocr`: words in images, as labels of a second head of the training (optional).

Three parts. `text`, one job per chunk and the only expensive one: the lines of text in its images,
by RapidOCR. `vocabulary`, one job: the words of all chunks that are classes. `labels`, one job per
chunk: the words of each image as class ids, in the format of other labels.

It is a small form of the OCR branch of RICE (arXiv 2507.20025): words per image, where RICE has
tokens per region of text. What is read is data of strangers, and never anything but data.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Ocr

#: Part → the options that it needs.
_PARTS = {
    "text": ("rows", "images"),
    "vocabulary": ("text",),
    "labels": ("text", "vocabulary"),
}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    parser.add_argument(
        "--part", required=True, choices=_PARTS, help="text in a chunk's images; vocabulary of all "
        "chunks; labels of a chunk's images",
    )  # fmt: skip
    parser.add_argument(
        "--rows", metavar="E.h5", help="the chunk's embeddings (of a curated run the kept ones), "
        "or its own labels: their rows are read [text]",
    )  # fmt: skip
    parser.add_argument("--images", metavar="MANIFEST", help="the chunk's images [text]")
    parser.add_argument(
        "--text", nargs="+", metavar="T.h5", help="text of all chunks [vocabulary], or of the "
        "chunk [labels]",
    )  # fmt: skip
    parser.add_argument(
        "--vocabulary", metavar="V.json", help="the words that are classes [labels]"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="text or labels (h5), or vocabulary (json) "
        "to write",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes that read, each on one core; the output is the same for any number "
        "[%(default)s]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Ocr) -> None:
    """Do one part. Raises :class:`UserError`."""
    from mlcd.launch import lease
    from mlcd.utils.ownership import claim

    for option in _PARTS[arguments.part]:
        if not getattr(arguments, option):
            raise UserError(f"--{option}: needed for --part {arguments.part}; give it")
    if arguments.part == "text":
        from mlcd.stages.ocr.read import read_text

        return read_text(
            arguments.rows, arguments.images, arguments.output, section, workers=arguments.threads
        )
    if arguments.part == "labels" and len(arguments.text) > 1:
        raise UserError("--text: --part labels takes one file, of one chunk")
    claim(arguments.output)
    from mlcd.data.ocr import Text, Vocabulary
    from mlcd.utils.fingerprint import code_hash

    made = [Text(path).fingerprint for path in arguments.text]
    if arguments.part == "vocabulary":
        from mlcd.stages.ocr.vocabulary import write_vocabulary

        identity = code_hash("ocr"), section.for_vocabulary(), made
        with lease.writing(arguments.output, *identity) as wanted:
            if wanted:
                write_vocabulary(arguments.text, arguments.output, section)
        return None
    from mlcd.stages.ocr.labels import write_labels

    identity = code_hash("ocr"), section.for_labels(), [
        *made, Vocabulary(arguments.vocabulary).checksum
    ]  # fmt: skip
    with lease.writing(arguments.output, *identity) as wanted:
        if wanted:
            write_labels(arguments.text[0], arguments.vocabulary, arguments.output, section)
    return None

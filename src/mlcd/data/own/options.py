"""The options by which stages are told how own rows and images are joined."""

from __future__ import annotations

import argparse
from typing import NamedTuple


class Join(NamedTuple):
    """`key` (column or dataset, None: by order) and what :func:`add_arguments` adds."""

    key: str | None
    span: str | None = None
    urls: str | None = None
    tar_keys: bool = False


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of :class:`Join`."""
    parser.add_argument(
        "--own-rows", metavar="START:STOP",
        help="rows of your own files that are this chunk's, where no key joins them [all]",
    )  # fmt: skip
    parser.add_argument(
        "--urls", metavar="FILE",
        help="with a key: the chunk's table of images on disk, which tells where paths begin",
    )  # fmt: skip
    parser.add_argument(
        "--tar-keys", action="store_true",
        help="the key may hold webdataset keys: all images are of one set of tars",
    )  # fmt: skip


def of_options(arguments: argparse.Namespace, key: str | None) -> Join:
    """Return what the options say."""
    return Join(key, arguments.own_rows, arguments.urls, arguments.tar_keys)

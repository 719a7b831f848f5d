"""Retrieval: images that find images of their class, and images and texts one another."""

from __future__ import annotations

import os
from collections.abc import Sequence

import h5py
import numpy as np
import torch
from torch.nn import functional

from mlcd.data import hdf5
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record

#: Similarities held at once.
_BLOCK = 1 << 26
#: Kind of the file of texts' embeddings; see docs/reference/formats.md.
TEXTS = "text_embeddings"
#: Ranks that papers print for image–text retrieval.
RANKS = (1, 5, 10)
WAYS = ("image_to_text", "text_to_image")


def recall_of_class(
    query: torch.Tensor,
    query_label: torch.Tensor,
    query_group: torch.Tensor,
    gallery: torch.Tensor,
    gallery_label: torch.Tensor,
    gallery_group: torch.Tensor,
    ks: Sequence[int],
) -> tuple[dict[int, float], dict[int, float], int]:
    """Return k → R@k of image retrieval, the same of chance, and the number of queries counted.

    R@k: the share of queries of which one of the k most similar (cosine) gallery images has the
    class, as in UNICOM (arXiv 2304.05884). Images of the query's own group, itself first of all,
    are not in its gallery; a query whose class is not in its gallery is left out. query is float
    [m, d], gallery [n, d], labels and groups int64. Chance draws k different images of the query's
    gallery.
    """
    query, gallery = functional.normalize(query, dim=1), functional.normalize(gallery, dim=1)
    hits = dict.fromkeys(ks, 0)
    chance = dict.fromkeys(ks, 0.0)
    counted = 0
    size = max(1, _BLOCK // len(gallery))
    for start in range(0, len(query), size):
        block = slice(start, start + size)
        similarity = query[block] @ gallery.T
        allowed = query_group[block, None] != gallery_group
        similarity.masked_fill_(~allowed, -torch.inf)
        right = (query_label[block, None] == gallery_label) & allowed
        answerable = right.any(1)
        nearest = similarity.topk(min(max(ks), len(gallery)), dim=1).indices
        found = right.gather(1, nearest)[answerable]
        counted += int(answerable.sum())
        answers, there = right.sum(1)[answerable], allowed.sum(1)[answerable]
        for k in ks:
            hits[k] += int(found[:, :k].any(1).sum())
            chance[k] += float(chance_of_a_hit(answers, there, k).sum())
    total = max(1, counted)
    return {k: hits[k] / total for k in ks}, {k: chance[k] / total for k in ks}, counted


def chance_of_a_hit(right: torch.Tensor, there: torch.Tensor, k: int) -> torch.Tensor:
    """Return float64: how likely k different draws of `there` items have one of the `right`."""
    missed = torch.ones_like(right, dtype=torch.float64)
    for drawn in range(k):
        missed = missed * (there - right - drawn).clamp(min=0) / (there - drawn).clamp(min=1)
    return 1 - missed


def image_text_ranks(
    images: torch.Tensor, texts: torch.Tensor, image: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ranks (1 is best) of the right answers, of images int64 [n] and texts [m].

    images is float [n, d], texts [m, d], `image` int64 [m] the row in images that each text
    belongs to; every image has a text. An image's rank is that of its best text. Similarity is
    the cosine. A wrong answer that is not less similar than the right one counts before it, so that
    embeddings that are all alike, or no numbers, find nothing.
    """
    images, texts = functional.normalize(images, dim=1), functional.normalize(texts, dim=1)
    of_image = torch.empty(len(images), dtype=torch.int64, device=images.device)
    of_text = torch.empty(len(texts), dtype=torch.int64, device=images.device)
    size = max(1, _BLOCK // max(len(images), len(texts)))
    for start in range(0, len(images), size):
        block = slice(start, start + size)
        similarity = images[block] @ texts.T
        rows = torch.arange(len(images), device=images.device)[block]
        own = image == rows[:, None]
        best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        of_image[block] = 1 + (~(similarity < best) & ~own).sum(1)
    for start in range(0, len(texts), size):
        block = slice(start, start + size)
        similarity = texts[block] @ images.T
        mine = image[block, None]
        # The right one is as similar as itself: it counts for the 1.
        of_text[block] = (~(similarity < similarity.gather(1, mine))).sum(1)
    return of_image, of_text


def image_text_recall(
    images: torch.Tensor, texts: torch.Tensor, image: torch.Tensor
) -> dict[str, float]:
    """Return R@1, 5, 10 (four digits) and the median rank, both ways, of :func:`image_text_ranks`.

    Named image_to_text_r1, …, image_to_text_median_rank, text_to_image_r1, ….
    """
    found: dict[str, float] = {}
    ranks = image_text_ranks(images, texts, image)
    for way, rank in zip(WAYS, ranks, strict=True):
        for k in RANKS:
            found[f"{way}_r{k}"] = round(float((rank <= k).double().mean()), 4)
        found[f"{way}_median_rank"] = float(np.median(rank.cpu().numpy()))
    return found


def image_text_part(
    images: str, texts: str, output: str | os.PathLike[str], device: torch.device
) -> dict[str, float]:
    """Write R@1, 5, 10 and the median rank both ways as JSON to `output`, and return them.

    `images` is an HDF5 file of kind `embeddings` with the images that count, `texts` one of kind
    `text_embeddings`: `embedding` float [m, d] and `key` [m], the key of the image that the text
    describes. Images may have several texts (Flickr30k and COCO: five). Raises
    :class:`UserError` if a file is damaged, dimensions differ, or keys do not match.
    """
    rows, keys = read_embeddings(images, "embeddings")
    words, of = read_embeddings(texts, TEXTS)
    if rows.shape[1] != words.shape[1]:
        raise UserError(
            f"{texts}: dimension {words.shape[1]}, the images' is {rows.shape[1]}; embed both "
            "with the towers of one model"
        )
    place = {key: row for row, key in enumerate(keys)}
    if len(place) < len(keys):
        raise UserError(f"{images}: a key stands twice; give each image once")
    if unknown := [key for key in of if key not in place]:
        raise UserError(f"{texts}: no image of key {_shown(unknown[0])} in {images}")
    if without := set(keys) - set(of):
        raise UserError(f"{texts}: no text for the image {_shown(min(without))} of {images}")
    image = torch.tensor([place[key] for key in of], device=device)
    found = image_text_recall(
        torch.from_numpy(rows).to(device), torch.from_numpy(words).to(device), image
    )
    write_record(output, {"images": len(rows), "texts": len(words), "scores": found})
    return found


def read_embeddings(path: str, kind: str) -> tuple[np.ndarray, list[bytes]]:
    """Return embedding float32 [n, d] and key [n], of any program's file.

    Raises :class:`UserError` if it has other shapes or types, none, or one that is not finite.
    """
    with hdf5.reading(path, kind, foreign=True) as file:
        for name, what, dimensions in (("embedding", "numbers", 2), ("key", "texts", 1)):
            if not isinstance(file.get(name), h5py.Dataset):
                raise UserError(f"{path}: has no {name!r}; see docs/reference/formats.md")
            kinds = "fiu" if what == "numbers" else "SO"
            if file[name].ndim != dimensions or file[name].dtype.kind not in kinds:
                raise UserError(
                    f"{path}: {name!r} is {file[name].dtype} {list(file[name].shape)}; expected "
                    f"{what} of {dimensions} dimensions"
                )
        rows, keys = file["embedding"][:].astype(np.float32), file["key"][:].tolist()
    if len(rows) != len(keys):
        raise UserError(f"{path}: {len(rows)} rows and {len(keys)} keys; give a key for each row")
    if not len(rows):
        raise UserError(f"{path}: holds no embedding; give a file that does")
    if not (finite := np.isfinite(rows).all(1)).all():
        key = _shown(keys[int(finite.argmin())])
        raise UserError(
            f"{path}: {int((~finite).sum())} embeddings are not finite, the first of {key}; "
            "embed again, in bf16 or fp32"
        )
    return rows, keys


def _shown(key: bytes) -> str:
    return repr(key.decode(errors="backslashreplace"))

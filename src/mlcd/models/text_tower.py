"""The text tower: CLIP's text transformer, built at random weights, stored beside its encoder.

`text.safetensors` holds float32 weights, `text.json` how to build the tower again and which image
encoder (by SHA-256) its features are to be compared with.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mlcd.config.text import Text
from mlcd.models import slices
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.records import read_record, write_record

WEIGHTS = "text.safetensors"
DESCRIPTION = "text.json"
#: CLIP's byte-pair vocabulary, which open_clip carries.
VOCABULARY = 49408
_SHAPE = ("width", "layers", "heads", "context_length")
#: CLIP's initial temperature, and the most that the scale may grow to.
_INITIAL_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0


class _AtMost(torch.autograd.Function):
    """Clamp from above; the gradient stays where a step against it leads back.

    A plain clamp has no gradient beyond the limit, and a value past it would stay there for good.
    CLIP clamps the parameter after each step; under ZeRO a parameter is a copy that the next step
    overwrites, so that its gradient is limited here.
    """

    @staticmethod
    def forward(context: Any, value: torch.Tensor, limit: float) -> torch.Tensor:
        context.save_for_backward(value)
        context.limit = limit
        return value.clamp(max=limit)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (value,) = context.saved_tensors
        return gradient * ((value <= context.limit) | (gradient > 0)), None


class TextTower(nn.Module):
    """Tokens int64 [B, context_length] to features [B, d], and the scale of their cosines [1].

    Attributes: `embedding_dim` (d), `shape` (width, layers, heads, context_length), `sha256` (of
    the file that it was loaded from, else ""), `encoder_sha256` (of the encoder that it was trained
    against, else "").
    """

    def __init__(self, shape: dict[str, int], embedding_dim: int) -> None:
        import mlcd.utils.compat  # noqa: F401  (before open_clip)

        # isort: split
        from open_clip.transformer import TextTransformer

        super().__init__()
        self.shape = shape
        self.embedding_dim = embedding_dim
        self.sha256 = self.encoder_sha256 = ""
        self.transformer = TextTransformer(**shape, vocab_size=VOCABULARY, output_dim=embedding_dim)
        # Of shape [1] and not [], which ZeRO 3 cannot divide over ranks.
        self.log_scale = nn.Parameter(torch.tensor([math.log(_INITIAL_SCALE)]))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limit = math.log(_LARGEST_SCALE)
        # torch leaves Function.apply untyped.
        scale = _AtMost.apply(self.log_scale.float(), limit)  # type: ignore[no-untyped-call]
        return self.transformer(tokens), scale.exp()


def build(section: Text, embedding_dim: int) -> TextTower:
    """Build the tower of `section` at weights drawn from its seed; random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(section.seed)
        return TextTower({key: getattr(section, key) for key in _SHAPE}, embedding_dim)


def save(tower: TextTower, folder: str | os.PathLike[str], extra: dict[str, Any]) -> None:
    """Write text.safetensors, then text.json with `extra` (such as encoder_sha256) merged in."""
    weights = Path(folder) / WEIGHTS
    state = {name: value.detach().float().cpu().contiguous() for name, value in
             sorted(tower.state_dict().items())}  # fmt: skip
    with atomic_path(weights) as temporary:
        save_file(state, temporary)
    description = {
        **tower.shape,
        "embedding_dim": tower.embedding_dim,
        "vocabulary": VOCABULARY,
        "sha256": sha256_file(weights),
    }
    write_record(Path(folder) / DESCRIPTION, {**description, **extra})


def load(folder: str | os.PathLike[str], encoder_sha256: str | None = None) -> TextTower:
    """Load what :func:`save` wrote, in evaluation mode, on the CPU.

    Raises :class:`UserError` if a file is missing or damaged, or if the tower was trained against
    another encoder than the one whose weights have `encoder_sha256`.
    """
    path, weights = Path(folder) / DESCRIPTION, Path(folder) / WEIGHTS
    about = read_record(path, "text")
    if not weights.exists() or sha256_file(weights) != about.get("sha256"):
        raise UserError(f"{weights}: not the weights that {DESCRIPTION} describes; rerun text")
    if encoder_sha256 is not None and about.get("encoder_sha256") != encoder_sha256:
        raise UserError(f"{path}: trained against another encoder; rerun text")
    try:
        tower = TextTower({key: int(about[key]) for key in _SHAPE}, int(about["embedding_dim"]))
        tower.load_state_dict(load_file(weights))
        tower.sha256 = str(about["sha256"])
        tower.encoder_sha256 = str(about.get("encoder_sha256", ""))
    except (KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights}: does not fit {path} ({reason}); rerun text") from None
    return tower.eval()


@torch.inference_mode()
def encode(tower: TextTower, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Return unit features float32 [n, d], on the CPU, of `texts`; equal for any threads."""
    device = tower.log_scale.device
    parts = []

    @torch.no_grad()
    def unit(tokens: torch.Tensor) -> tuple[torch.Tensor]:
        return (nn.functional.normalize(tower(tokens)[0].float(), dim=1),)

    for start in range(0, len(texts), batch_size):
        tokens = tokenize(texts[start : start + batch_size], tower.shape["context_length"])
        (features,) = slices.forward(unit, torch.from_numpy(tokens.astype(np.int64)).to(device))
        assert features is not None
        parts.append(features.cpu())
    return torch.cat(parts) if parts else torch.zeros(0, tower.embedding_dim)


def tokenize(texts: Sequence[str], context_length: int) -> np.ndarray:
    """Return CLIP's byte-pair tokens uint16 [n, context_length]; 0 pads."""
    tokens: torch.Tensor = _tokenizer()(list(texts), context_length)
    return tokens.numpy().astype(np.uint16)


@functools.cache
def _tokenizer() -> Any:
    import mlcd.utils.compat  # noqa: F401  (before open_clip)

    # isort: split
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()

"""The same weights under the names of other libraries, turned into those of our encoder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mlcd.models.trainable import Encoder
from mlcd.models.vit import MLCDViT

State = dict[str, Tensor]
#: transformers' names → ours and open_clip's: outside of the blocks, and in them.
_STEM = {
    "embeddings.class_embedding": ("class_embedding", "class_embedding"),
    "embeddings.patch_embedding.weight": ("patches.weight", "conv1.weight"),
    "embeddings.position_embedding.weight": (None, "positional_embedding"),
    "class_pos_emb": ("class_angle", None),
    # "layrnorm" is transformers' own spelling.
    "pre_layrnorm.weight": ("norm_in.weight", "ln_pre.weight"),
    "pre_layrnorm.bias": ("norm_in.bias", "ln_pre.bias"),
    "post_layernorm.weight": ("norm_out.weight", "ln_post.weight"),
    "post_layernorm.bias": ("norm_out.bias", "ln_post.bias"),
}
_PARTS = {
    "layer_norm1": ("norm_1", "ln_1"),
    "layer_norm2": ("norm_2", "ln_2"),
    "self_attn.out_proj": ("out", "attn.out_proj"),
    "mlp.fc1": ("fc_1", "mlp.c_fc"),
    "mlp.fc2": ("fc_2", "mlp.c_proj"),
}
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ATTENTION = re.compile(r"self_attn\.([qkv])_proj")
#: What timm's modules call the function that turns released weights into the model's.
_FILTERS = ("checkpoint_filter_fn", "_filter_fn")


def readings(state: State, encoder: Encoder) -> Iterator[tuple[str, State]]:
    """Iterate over the ways to read `state`: whose names they are, and what they mean in ours."""
    yield "mlcd", state
    yield "its trunk", {f"trunk.{name}": value for name, value in state.items()}
    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    if visual:
        yield "open_clip", {f"trunk.{name[7:]}": value for name, value in visual.items()}
    if isinstance(encoder.trunk, MLCDViT) or hasattr(encoder.trunk, "ln_pre"):
        yield "transformers", of_transformers(state, isinstance(encoder.trunk, MLCDViT))
    elif ":" not in encoder.model:
        yield "timm", {f"trunk.{key}": value for key, value in _of_timm(state, encoder).items()}


def of_transformers(state: State, rotary: bool) -> State:
    """Return weights of MLCDVisionModel (`rotary`) or CLIP's vision models under our names.

    Names that neither has keep theirs.
    """
    place = 0 if rotary else 1
    found: State = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        key = name.removeprefix("vision_model.")
        block = _BLOCK.fullmatch(key)
        if key == "visual_projection.weight" and not rotary:
            found["trunk.proj"] = value.T.contiguous()
        elif key in _STEM and (ours := _STEM[key][place]):
            found[f"trunk.{ours}"] = value.reshape(-1) if key == "class_pos_emb" else value
        elif block and (third := _ATTENTION.fullmatch(block[2])):
            joint = f"blocks.{block[1]}.qkv.{block[3]}"
            if not rotary:
                joint = f"transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"
            thirds.setdefault(f"trunk.{joint}", {})[third[1]] = value
        elif block and block[2] in _PARTS:
            blocks = "blocks" if rotary else "transformer.resblocks"
            part = _PARTS[block[2]][place]
            found[f"trunk.{blocks}.{block[1]}.{part}.{block[3]}"] = value
        else:
            found[name] = value
    for name, parts in thirds.items():
        if parts.keys() == set("qkv"):
            found[name] = torch.cat([parts[letter] for letter in "qkv"])
    return found


def of_packaged(state: State, encoder: Encoder) -> State:
    """Return the packaged EfficientNet's weights under our names.

    Its layers stand in the order of timm's, each with the same shape (tested by equal features).
    """
    own = encoder.trunk.state_dict()
    theirs = list(state)
    order = dict(zip(theirs, own, strict=False))
    return {f"trunk.{order[name]}" if name in order else name: state[name] for name in theirs}


def _of_timm(state: State, encoder: Encoder) -> State:
    """Return released weights as timm's own loader would give them to the model."""
    import timm

    module = sys.modules[timm.model_entrypoint(encoder.model.partition(".")[0]).__module__]
    turn: Any = next((getattr(module, name) for name in _FILTERS if hasattr(module, name)), None)
    if turn is None:
        return state
    try:
        with torch.no_grad():
            turned: State = turn(dict(state), encoder.trunk)
    except Exception:  # weights that are none of this model: the names then say so
        return state
    return turned

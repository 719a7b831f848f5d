"""Section `train`: the encoder, its loss and its schedule."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mlcd.config.base import MOST_RATE, MOST_SEED, MOST_SIDE, Section, as_json
from mlcd.config.mosaic import Mosaic, mosaic_of

#: Value of `regions` → keys that only this value reads.
_OF_REGIONS = {"boxes": {"regions_per_image"}, "mosaic": {"mosaic_grid", "mosaic_share"}}


class Train(Section):
    """Train the encoder by multi-label cluster discrimination (paper: Eq. 5, Tables 9 and 10)."""

    model: str = Field(
        "resnet10t",
        description="Vision encoder to train: a timm model name, open_clip:NAME for the vision "
        "tower of an open_clip model, or a vision transformer with rotary positions in two "
        "dimensions: mlcd_vit_tiny_patch8 (laptops), _base_patch32, _base_patch16, _large_patch14, "
        "_bigg_patch14. The paper: open_clip:ViT-B-32, ViT-B-16, ViT-L-14.",
    )
    embedding_dim: int = Field(
        128,
        gt=0,
        le=16384,
        description="Dimension d of the trained embedding and of the class centers. "
        "The paper: 512 (ViT-B), 768 (ViT-L). At the width of an mlcd_vit_* (192, 768, 768, 1024, "
        "1664) the projection is left out.",
    )
    image_size: int = Field(
        64, gt=0, le=MOST_SIDE, description="Side of the training crop in pixels."
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth rate, where offered.")
    initial: str | None = Field(
        None,
        min_length=1,
        description="First weights of the encoder. A tag of pretrained weights of `model` (timm: "
        "a1_in1k; open_clip: laion2b_s34b_b79k; tf_efficientnet_lite0 also takes "
        "efficientnet_lite0, those of its package), a file (safetensors; or of torch, read without "
        "pickle's code), a folder of transformers, timm or open_clip, or results/train of an "
        "earlier run. Position embeddings are interpolated to image_size. null: random.",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Factor on the encoder's learning rate per layer before the last: the first "
        "layers of pretrained weights then move least. 0.65 to 0.9 are usual. null: one rate.",
    )
    freeze_layers: int = Field(
        0,
        ge=0,
        description="First layers of the encoder that are not trained, the stem (patches, position "
        "embeddings) being the first; their batch norms keep their statistics.",
    )
    loss: Literal["mlcd", "mlc", "single"] = Field(
        "mlcd",
        description="mlcd: Eq. 5, positives and negatives in separate terms. mlc: Eq. 4. "
        "single: softmax of the nearest center against the negatives.",
    )
    positives: int | None = Field(
        None,
        gt=0,
        description="Labels of each image that are its positives, the nearest first; null: all "
        "that the stage label gave. Ablations share the labels of the largest l by it.",
    )
    scale: float = Field(
        16.0,
        gt=0,
        description="Factor on cosine similarities. Not printed in MLCD; RICE: 64. On a few "
        "thousand images 64 pulls all features together (metrics.jsonl: feature_cosine near 1).",
    )
    margin: float = Field(0.3, ge=0, description="Margin on the positives. The paper: 0.3.")
    margin_type: Literal["cosface", "arcface", "none"] = Field(
        "cosface",
        description="cosface: cos(θ) − m. arcface: cos(θ + m). none. The paper cites ArcFace, its "
        "lead author's public trainer uses CosFace.",
    )
    negative_ratio: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share r of all classes drawn as negatives at each step. The paper: 0.1.",
    )
    ocr_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a second loss: the words read in an image (section ocr) against the "
        "others, by Eq. 5 on the same embedding, with centers of their own. 0: none; over 0 needs "
        "ocr.enabled.",
    )
    center_init: Literal["centroids", "random"] = Field(
        "centroids",
        description="Initial class centers: the k-means centroids (projected to embedding_dim by "
        "PCA where the dimensions differ) or random unit vectors.",
    )
    epochs: int = Field(20, gt=0, description="Passes over the labeled images. The paper: 32.")
    high_res_image_size: int | None = Field(
        None,
        gt=0,
        le=MOST_SIDE,
        description="Side of the crop in pixels in a second phase of the run, after `epochs` at "
        "image_size; position embeddings are interpolated, centers and moments kept. null: none. "
        "The paper: 336 after 224.",
    )
    high_res_epochs: int = Field(
        1, gt=0, description="Passes over the images in the high-resolution phase. The paper: 1."
    )
    high_res_lr: float = Field(
        2e-4,
        gt=0,
        le=MOST_RATE,
        description="Peak learning rate of the encoder in the high-resolution phase, which has its "
        "own warm-up and decay; that of the centers is scaled alike. Not stated in the paper.",
    )
    batch_size: int = Field(
        64, gt=0, description="Images per step over all ranks. The paper: 32,800."
    )
    lr: float = Field(
        2e-3, gt=0, le=MOST_RATE, description="Peak learning rate of the encoder (AdamW)."
    )
    classifier_lr: float = Field(
        1e-3,
        gt=0,
        le=MOST_RATE,
        description="Peak learning rate of the class centers (row-sparse AdamW).",
    )
    weight_decay: float = Field(
        0.2, ge=0, description="Weight decay of the encoder's matrices; biases and norms have none."
    )
    classifier_weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of the class centers that a step touches."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's β₁. Not stated in the paper.")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW's β₂. Not stated in the paper.")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear warm-up. The paper: 2,000.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Decay of the learning rates to zero after warm-up."
    )
    clip_norm: float = Field(
        1.0, ge=0, description="Largest gradient norm, of encoder and centers each; 0: no clipping."
    )
    crop_min_area: float = Field(
        0.5, gt=0, le=1, description="Least share of the image that a random crop keeps."
    )
    crop_pixels: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: crops by Pillow's bicubic filter. fast: the same crops, within one of "
        "256 levels on average, by torch's filter, and JPEGs of which a crop has four times the "
        "wanted pixels per side are decoded at half the size: less CPU time for large images, and "
        "more for those of some 64 pixels.",
    )
    flip: bool = Field(True, description="Mirror images at random.")
    regions: Literal["mosaic", "boxes"] | None = Field(
        None,
        description="What is trained beside whole images, by a region layer on the encoder's map. "
        "mosaic: some images of a step are tiles of canvases, each a region with its image's own "
        "labels (as CLIM, arXiv 2312.11376; not RICE). boxes: regions of the images with labels of "
        "their own, which the stage regions found (after RICE). null: nothing.",
    )
    regions_per_image: int = Field(
        4,
        gt=0,
        le=256,
        description="With `regions`: boxes, regions of each image that are rows of a step, drawn "
        "anew each epoch from those that its crop shows; repeated where there are fewer. RICE: 10.",
    )
    mosaic_grid: int = Field(
        2,
        ge=2,
        le=16,
        description="Tiles of a canvas per side, with `regions`: mosaic. It must divide the "
        "encoder's map, image_size / patch places per side.",
    )
    mosaic_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the images of a step that are tiles; the others are whole. Canvases "
        "are full: a micro-batch is a multiple of a number that follows (8 at 2 and 0.5).",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision of the encoder's forward and backward pass and of the classifier's "
        "products. bf16 on GPUs; fp32 on CPUs, where bf16 is some 15 times slower.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="DeepSpeed ZeRO stage of the encoder: 0 none, 1 optimizer, 2 + gradients, "
        "3 + parameters divided over the ranks.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute the encoder's activations in the backward pass: a third more "
        "arithmetic for a fraction of the memory. Same losses.",
    )
    compile: bool | None = Field(
        None,
        description="Compile the encoder with torch.compile: same losses to rounding, a first step "
        "that takes minutes. null: on GPUs, where Triton and a C compiler are there, and not with "
        "zero_stage 3. On CPUs true needs a C++ compiler.",
    )
    shuffle_block: int = Field(
        64,
        gt=0,
        description="Images that are neighbors in a tar and are shuffled as one block over all "
        "chunks, so that reading is sequential. At scale 256 or more.",
    )
    shuffle_window: int = Field(
        8192,
        gt=0,
        description="Images shuffled singly: an epoch's sequence of blocks is cut into windows "
        "of this many, and each is shuffled.",
    )
    shares_by_place: bool = Field(
        False,
        description="Sort the images of a step by their place on disk before ranks take their "
        "shares: each node then reads its own part of the blocks. The batch is the same; which "
        "rank sees which image is not. For runs on several nodes.",
    )
    log_every: int = Field(5, gt=0, description="Steps between lines of metrics.jsonl.")
    seed: int = Field(
        0, ge=0, le=MOST_SEED, description="Seed of weights, data order, crops and negatives."
    )

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of words and regions where they are off.

        So a run without them is known as by releases that lack them.
        """
        values: dict[str, Any] = handler(self)
        off = set() if self.ocr_weight else {"ocr_weight"}
        off |= set() if self.regions else {"regions"}
        off.update(*(keys for value, keys in _OF_REGIONS.items() if value != self.regions))
        for key in off:
            values.pop(key, None)
        return values

    def for_encoder(self) -> str:
        """Return the keys that decide the encoder, as one line of JSON.

        `initial` is not among them: what that file holds decides, not where it lies.
        """
        return as_json(self.model_dump(mode="json", exclude={"initial"}))

    def is_plain(self) -> bool:
        """True if names and sizes alone say that the encoder can be built and begun."""
        if self.initial or self.layer_decay or self.freeze_layers or self.regions:
            return False
        # Of timm's models some take one size, or have no stochastic depth; the default is known.
        of_timm = not self.model.startswith(("open_clip:", "mlcd_vit_"))
        known = (self.model, self.high_res_image_size, self.drop_path) == ("resnet10t", None, 0)
        return known or not of_timm

    def for_architecture(self) -> str:
        """Return the keys that random weights depend on beside the seed, as one line of JSON."""
        keys = {"model", "embedding_dim", "image_size", "high_res_image_size"}
        return self.model_dump_json(include=keys)

    @property
    def mosaic(self) -> Mosaic | None:
        """How a step's images are laid out; None where all of them are whole."""
        return mosaic_of(self.mosaic_grid, self.mosaic_share) if self.regions == "mosaic" else None

    @model_validator(mode="after")
    def _canvases_are_full(self) -> Train:
        if (mosaic := self.mosaic) is None:
            return self
        for key in ("image_size", "high_res_image_size"):
            if (side := getattr(self, key)) is not None and side % self.mosaic_grid:
                raise ValueError(f"{key} {side} is no multiple of mosaic_grid {self.mosaic_grid}")
        if self.batch_size % mosaic.rows:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of {mosaic.rows} ({mosaic.words}); "
                "change it, mosaic_grid or mosaic_share"
            )
        return self

    @model_validator(mode="after")
    def _sums_of_exponentials_stay_finite(self) -> Train:
        if self.scale * (1 + self.margin) > 600:
            raise ValueError("scale · (1 + margin) is over 600; lower scale")
        return self

    @model_validator(mode="after")
    def _compiled_weights_are_whole(self) -> Train:
        # torch.compile meets the empty placeholders of divided weights in attention layers.
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not work with zero_stage 3; lower zero_stage to 2")
        return self

    @model_validator(mode="after")
    def _arcface_needs_room(self) -> Train:
        if self.margin_type == "arcface" and self.margin > 3.14159:
            raise ValueError("margin is an angle in radians under arcface; expected at most π")
        return self

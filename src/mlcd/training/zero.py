"""A network under DeepSpeed ZeRO, and its weights and moments as plain named tensors.

DeepSpeed's own checkpoints are pickles tied to a number of ranks. Here each weight and its two
AdamW moments are gathered to whole float32 tensors, which any number of ranks and any ZeRO stage
can take up again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from mlcd.distributed import Place

MOMENTS = ("exp_avg", "exp_avg_sq")


class Options(Protocol):
    """The keys of a config section (`train`, `text`) that decide how its network is trained."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    batch_size: int
    precision: str
    zero_stage: int


class ZeroEngine:
    """Forward, backward and optimiser step of `network` on every rank.

    `micro_batch` is the number of samples a rank takes at once; the global batch over ranks times
    micro-batch is the number of accumulation steps. Gradients are averaged over ranks by DeepSpeed
    and over accumulation steps by :meth:`backward`. `compiled`: through torch.compile.
    """

    def __init__(
        self,
        network: nn.Module,
        options: Options,
        place: Place,
        micro_batch: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self.place = place
        self._stage = options.zero_stage
        module: nn.Module = _Forward(network.to(place.device), options.precision == "bf16")
        optimizer = torch.optim.AdamW(
            parameter_groups(network, options.weight_decay),
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            fused=place.device.type == "cuda",
        )
        self._engine = _initialize(
            module, optimizer, _deepspeed_config(options, place, micro_batch)
        )
        if compiled:
            self._engine.compile(backend="inductor")
        self._states = self._make_moments()

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Run the network; parts of one precision leave as the network gives them."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` divided by the number of accumulation steps."""
        self._engine.backward(loss)

    def step(self, lr: float) -> float | None:
        """After each micro-batch: at the last one of a step, update the weights.

        Returns the norm of the gradient before clipping at an update, else None.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return None
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._stage == 0:
            gradients = [w.grad for w in self.network.parameters() if w.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over ``weight/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME``, whole and float32.

        A collective call: every rank iterates to the end.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, weight in self.network.named_parameters():
            if self._stage == 0:
                yield f"weight/{name}", weight.detach()
                for moment in MOMENTS:
                    yield f"{moment}/{name}", self._engine.optimizer.state[weight][moment]
            else:
                yield f"weight/{name}", safe_get_full_fp32_param(weight)
                for moment in MOMENTS:
                    yield f"{moment}/{name}", safe_get_full_optimizer_state(weight, moment)

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Set weights and moments, as :meth:`state` gave them, and AdamW's step count.

        `tensors` need not hold the weights if the network was built with them.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        for state in self._states:
            state["step"].fill_(step)
        for name, weight in self.network.named_parameters():
            for moment in MOMENTS:
                value = tensors[f"{moment}/{name}"].to(self.place.device)
                if self._stage == 0:
                    self._engine.optimizer.state[weight][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(weight, value, moment)

    def destroy(self) -> None:
        """Give up DeepSpeed's hooks and buffers; the engine cannot be used any more."""
        self._engine.destroy()

    def _make_moments(self) -> list[dict[str, torch.Tensor]]:
        """Create AdamW's state, which it would else make at its first step, and return it.

        DeepSpeed 0.19 links weights to their moments after the first group's first step, when the
        second group has none yet; with the moments there beforehand the links are whole.
        """
        optimizer = self._engine.optimizer
        inner = optimizer if self._stage == 0 else optimizer.optimizer
        flats: Any
        if self._stage == 0:
            flats = list(self.network.parameters())
        elif self._stage == 3:
            flats = optimizer.fp32_partitioned_groups_flat
        else:
            flats = optimizer.single_partition_of_fp32_groups
        on = self.place.device if self.place.device.type == "cuda" else "cpu"
        for flat in flats:
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            inner.state[flat] = {"step": torch.tensor(0.0, device=on), **moments}
        if self._stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()
        return [inner.state[flat] for flat in flats]


class _Forward(nn.Module):
    """The network under autocast: weights, moments and gradients stay float32."""

    def __init__(self, network: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self._bf16 = bf16

    def forward(self, *inputs: torch.Tensor) -> Any:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self._bf16):
            return self.network(*inputs)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels, decayed; vectors and scalars, not decayed.

    Biases, norms' gains and class tokens shaped as vectors are not decayed, as in CLIP.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _deepspeed_config(options: Options, place: Place, micro_batch: int) -> dict[str, Any]:
    return {
        "train_batch_size": options.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": options.batch_size // (place.world_size * micro_batch),
        "gradient_clipping": options.clip_norm,
        "zero_optimization": {"stage": options.zero_stage},
        # torch's AdamW, fused on GPUs, needs no compiler; DeepSpeed has only not listed it.
        "zero_allow_untested_optimizer": True,
    }


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    device = next(module.parameters()).device.type
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory collectives for CPUs are compiled at first use, for minutes, and a build
    # that is killed leaves a lock on which the next run hangs. Gloo gives the same sums.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine

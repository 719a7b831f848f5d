"""A network under DeepSpeed ZeRO, and its weights and moments as plain named tensors.

DeepSpeed's own checkpoints are pickles tied to a number of ranks. Here each weight and its two
AdamW moments are gathered to whole float32 tensors, which any number of ranks and any ZeRO stage
can take up again.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mlcd.config.recipe import Recipe
from mlcd.launch.process_group import RankPlace, share_timeout
from mlcd.training.communication import Communication
from mlcd.training.tensors import cpu_copy

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine:
    """Forward, backward and optimizer step of `network` on every rank, as `section` says.

    `micro_batch` is the number of samples that a rank takes at once; the global batch over ranks
    times micro-batch is the number of accumulation steps. Gradients are averaged over ranks by
    DeepSpeed and over accumulation steps by :meth:`backward`. `compiled`: through torch.compile.
    `lr_scales`: factor on the learning rate of each weight, by name. Weights without gradients
    are not trained, and have no moments.
    """

    def __init__(
        self,
        network: nn.Module,
        section: Recipe,
        place: RankPlace,
        micro_batch: int,
        *,
        compiled: bool = False,
        lr_scales: dict[str, float] | None = None,
    ) -> None:
        self.network = network
        self.place = place
        self._stage = section.zero_stage
        self._communication = Communication(section, place.device)
        self._communication.mark(network)
        module: nn.Module = _Forward(network.to(place.device), section.precision == "bf16")
        optimizer = torch.optim.AdamW(
            parameter_groups(network, section.weight_decay, lr_scales),
            lr=section.lr,
            betas=(section.beta1, section.beta2),
            fused=True,
        )
        weights = sum(weight.numel() for weight in _trained(network).values())
        config = _deepspeed_config(section, place, micro_batch)
        config.update(self._communication.settings(weights))
        self._engine = _initialize(module, optimizer, config)
        share_timeout(place)
        if compiled:
            self._engine.compile(backend="inductor")
        self._states = self._make_moments()
        self._communication.round(self._engine)

    def __call__(self, *inputs: Any) -> Any:
        """Run the network; parts of one precision leave as the network gives them."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` divided by the number of accumulation steps."""
        last = self._engine.is_gradient_accumulation_boundary()
        with self._communication.keeping(self._engine, last):
            self._engine.backward(loss)

    def step(self, lr: float) -> float | None:
        """After each micro-batch: at the last one of a step, update the weights.

        Returns the norm of the gradient before clipping at an update, else None; NaN if a gradient
        is not finite and DeepSpeed has said so by a negative norm.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return None
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        total = None
        if self._stage == 0:
            gradients = [w.grad for w in self.network.parameters() if w.grad is not None]
            total = torch.nn.utils.get_total_norm(gradients)
        with self._communication.gathering(self._engine):
            self._engine.step()
        norm = float(self._engine.get_global_grad_norm() if total is None else total)
        return norm if norm >= 0 else math.nan

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over ``weight/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME``, whole and float32.

        A collective call: every rank iterates to the end.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, weight in self.network.named_parameters():
            if not weight.requires_grad:
                yield f"weight/{name}", self._whole(weight)
            elif self._stage == 0:
                yield f"weight/{name}", weight.detach()
                for moment in MOMENTS:
                    yield f"{moment}/{name}", self._engine.optimizer.state[weight][moment]
            else:
                yield f"weight/{name}", safe_get_full_fp32_param(weight)
                for moment in MOMENTS:
                    yield f"{moment}/{name}", safe_get_full_optimizer_state(weight, moment)

    def copy_state(self) -> dict[str, torch.Tensor] | None:
        """Return copies in main memory of :meth:`state` on rank 0, None elsewhere; collective."""
        tensors: dict[str, torch.Tensor] | None = {} if self.place.is_main else None
        for name, tensor in self.state():
            if tensors is not None:
                tensors[name] = cpu_copy(tensor)
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Set weights and moments, as :meth:`state` gave them, and AdamW's step count.

        `tensors` need not hold the weights if the network was built with them.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        for state in self._states:
            state["step"].fill_(step)
        for name, weight in _trained(self.network).items():
            for moment in MOMENTS:
                value = tensors[f"{moment}/{name}"].to(self.place.device)
                if self._stage == 0:
                    self._engine.optimizer.state[weight][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(weight, value, moment)

    def _whole(self, weight: nn.Parameter) -> torch.Tensor:
        """Return a weight that is not trained; a collective call where it is divided."""
        if self._stage < 3:
            return weight.detach()
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([weight]):
            return weight.detach().clone()

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
            flats = list(_trained(self.network).values())
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

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self._bf16):
            return self.network(*inputs)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that are trained, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def parameter_groups(
    module: nn.Module, weight_decay: float, lr_scales: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return groups of the trained weights: matrices and kernels, decayed; vectors and scalars.

    The latter are not decayed: biases, norms' gains and class tokens shaped as vectors, as in CLIP.
    `lr_scales` (factors by name) divides both further; a group's factor is its `lr_scale`.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, weight in _trained(module).items():
            if (weight.ndim >= 2) == decayed:
                scale = lr_scales[name] if lr_scales else 1.0
                found.setdefault((scale, decayed), []).append(weight)
    return [
        {"params": weights, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), weights in found.items()
    ]


def _deepspeed_config(section: Recipe, place: RankPlace, micro_batch: int) -> dict[str, Any]:
    return {
        "train_batch_size": section.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": section.batch_size // (place.world_size * micro_batch),
        "gradient_clipping": section.clip_norm,
        # torch's AdamW, fused, needs no compiler; DeepSpeed has only not listed it.
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

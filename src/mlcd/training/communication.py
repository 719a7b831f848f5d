"""How ranks exchange an encoder's gradients and weights: DeepSpeed's settings, and what it lacks.

Under bfloat16 the forward pass sees weights rounded to it, so they travel rounded, as gradients do:
half the bytes. Each rank keeps the float32 weights of its share, which the optimizer updates; a
checkpoint holds those. Vectors (norms' gains, biases) travel as float32, and are few.

Gradients leave in parts of :data:`PART` numbers while the backward pass makes the next, and once
per step: DeepSpeed's stage 2 would reduce them again for every micro-batch.

In float32 on CPUs all is as DeepSpeed has it, so that results there do not move by a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mlcd.classifier.collectives import gather_parts
from mlcd.config.recipe import Recipe
from mlcd.training.memory import PART, WHOLE

#: Layers that compute in bfloat16 under autocast: their weights may be gathered rounded.
_HALVES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class Communication:
    """What a section asks of DeepSpeed on a device.

    halves: gradients and weights travel as bfloat16. tuned: gradients leave in parts, beside the
    backward pass and once per step.
    """

    def __init__(self, section: Recipe, device: torch.device) -> None:
        self.stage = section.zero_stage
        self.halves = section.precision == "bf16"
        self.tuned = self.halves or device.type == "cuda"

    def settings(self, weights: int) -> dict[str, Any]:
        """Return the part of DeepSpeed's config that is about the exchange of `weights` numbers."""
        zero: dict[str, Any] = {
            "stage": self.stage,
            # A bucket that the gradients do not fill would only take memory.
            "reduce_bucket_size": min(weights, PART if self.tuned else WHOLE),
        }
        if self.tuned:
            zero["overlap_comm"] = True
        found: dict[str, Any] = {"zero_optimization": zero}
        if self.halves:
            found["communication_data_type"] = "bf16"
        return found

    def mark(self, network: nn.Module) -> None:
        """Before DeepSpeed divides `network`: say which weights stage 3 may gather rounded."""
        if not (self.halves and self.stage == 3):
            return
        for module in network.modules():
            if isinstance(module, _HALVES):
                for weight in module.parameters(recurse=False):
                    if weight.ndim >= 2:
                        # DeepSpeed's own mark, which its torch_autocast sets too.
                        weight.comm_dtype = torch.bfloat16  # type: ignore[attr-defined]

    @contextmanager
    def keeping(self, engine: Any, last: bool) -> Iterator[None]:
        """Around a backward pass of stage 2: until the `last` of a step gradients stay here."""
        if last or not self.tuned or self.stage != 2:
            yield
            return
        # What engine.coalesce_grad_reduction sets, which however reduces at its end.
        engine.inside_no_sync_ctxt = engine.optimizer._coalesce_grad_reduction = True
        try:
            yield
        finally:
            engine.inside_no_sync_ctxt = engine.optimizer._coalesce_grad_reduction = False

    @contextmanager
    def gathering(self, engine: Any) -> Iterator[None]:
        """Around an optimizer step of stages 1 and 2: the new weights are gathered as bfloat16."""
        if not (self.halves and self.stage in (1, 2)):
            yield
            return
        from deepspeed.runtime.zero import stage_1_and_2 as module

        plain = module.all_gather_dp_groups
        matrices = [group[0].ndim >= 2 for group in engine.optimizer.bit16_groups]

        def gather(groups_flat: Any, partitioned_param_groups: Any, dp_process_group: Any,
                   **_: Any) -> None:  # fmt: skip
            for halved, flat, parts, group in zip(
                matrices, groups_flat, partitioned_param_groups, dp_process_group, strict=True
            ):
                _gather(flat, parts, group, halved)

        module.all_gather_dp_groups = gather
        try:
            yield
        finally:
            module.all_gather_dp_groups = plain

    def round(self, engine: Any) -> None:
        """Round what the forward pass sees, as each step's gather does; the shares stay exact.

        So a run that resumes computes with the weights that the undisturbed one has.
        """
        if self.halves and self.stage in (1, 2) and dist.get_world_size() > 1:
            for group in engine.optimizer.bit16_groups:
                for weight in group if group[0].ndim >= 2 else ():
                    weight.data.copy_(weight.data.bfloat16())


@torch.no_grad()
def _gather(flat: torch.Tensor, parts: list[torch.Tensor], group: Any, halved: bool) -> None:
    """Fill `flat`, of which each rank of `group` has one of the equal `parts`."""
    if len(parts) == 1:
        return
    part = parts[dist.get_rank(group)]
    if not halved:
        gather_parts(flat, part, group=group)
        return
    whole = torch.empty_like(flat, dtype=torch.bfloat16)
    gather_parts(whole, part.bfloat16(), group=group)
    flat.copy_(whole)

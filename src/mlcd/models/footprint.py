"""What a pass of a network holds in memory and computes, found by shapes alone.

The forward and backward pass run on fake tensors: every operator says which shapes it makes, none
is computed. Each storage is counted from where it is made to where it is given up, so the peak is
that of an allocator without loss, recomputed activations and gradients in work included.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mlcd.models import vit

#: Micro-batches that are traced; the peak is a straight line through both.
_FEW, _MANY = 4, 32
#: What autocast computes in float32 on CUDA, but not on a CPU, of what vision encoders use.
_FLOAT32_ON_CUDA = ("layer_norm", "group_norm")


def _attention_flop(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention on a CPU, which torch's counter does not know."""
    return int(sdpa_flop_count(query, key, value))


_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """`weights`: trained numbers. `buffers`: bytes of what is not trained. `fixed` + m ·
    `per_image`: bytes at the peak of a pass of m images (or texts), beyond weights, buffers and
    gradients. `flop`: floating point operations of an image's forward pass.
    """

    weights: int
    buffers: int
    fixed: int
    per_image: int
    flop: int

    def peak(self, images: int) -> int:
        """Return the bytes of a pass of `images`."""
        return self.fixed + images * self.per_image


#: Makes a fake input of so many samples, or the inputs.
Inputs = Callable[[int], Any]


def measure(
    network: nn.Module, *, bf16: bool, inputs: Inputs | None = None, backward: bool = True
) -> Footprint:
    """Return the footprint of `network` as it is set to train, on a GPU; seconds of one core.

    Its weights may lie on any device, meta too, and stay as they are. bf16: under autocast. inputs:
    of a network that is no :class:`~mlcd.models.trainable.Encoder`, or that sees more than images;
    a sample is what one of `count` is. Without `backward`, of its
    forward pass in evaluation mode.
    """
    few, many = (
        peak(network, count, bf16=bf16, inputs=inputs, backward=backward) for count in (_FEW, _MANY)
    )
    per_image = (many - few) / (_MANY - _FEW)
    frozen = [weight for weight in network.parameters() if not weight.requires_grad]
    return Footprint(
        weights=sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
        buffers=sum(buffer.nbytes for buffer in [*network.buffers(), *frozen]),
        fixed=max(0, round(few - _FEW * per_image)),
        per_image=round(per_image),
        flop=_flop(network, inputs),
    )


def peak(
    network: nn.Module,
    count: int,
    *,
    bf16: bool,
    inputs: Inputs | None = None,
    backward: bool = True,
) -> int:
    """Return the bytes at the peak of a forward and backward pass of `count`, on fake tensors.

    Weights, buffers and gradients do not count: the gradients are there beforehand, as at any but
    the first micro-batch. Where the pass ends in a tuple, its first part has a gradient.
    """
    training = network.training
    with FakeTensorMode(), torch.set_grad_enabled(backward):
        tensors = _fake_tensors(network, gradients=backward)
        gradients = [t.grad for t in tensors.values() if t.grad is not None]
        live = LiveBytes([*tensors.values(), *gradients])
        try:
            with live:
                batch = _inputs(network, inputs)(count)
                step = _Step(network.train(backward), bf16, backward)
                torch.func.functional_call(step, tensors, _all(batch))
        finally:
            network.train(training)
    return live.peak


def _inputs(network: nn.Module, inputs: Inputs | None) -> Inputs:
    """Return `inputs`, or what makes images for an encoder."""
    if inputs is not None:
        return inputs
    side: Any = network.image_size
    return lambda count: torch.empty(count, 3, side, side, device="cpu")


def _all(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _fake_tensors(network: nn.Module, *, gradients: bool) -> dict[str, Tensor]:
    """Return stand-ins on the CPU for weights, with gradients if asked for, and buffers."""
    tensors = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        if gradients and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            fake.requires_grad_()
            fake.grad = torch.empty_like(fake, requires_grad=False)
        tensors[f"network.{name}"] = fake
    return tensors


def _flop(network: nn.Module, inputs: Inputs | None) -> int:
    """Return the operations of one sample's forward pass."""
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with FakeTensorMode(), torch.no_grad():
        fakes = _fake_tensors(network, gradients=False)
        tensors = {name.removeprefix("network."): tensor for name, tensor in fakes.items()}
        batch = _inputs(network, inputs)(2)
        with counter:
            torch.func.functional_call(network, tensors, _all(batch))
    return int(counter.get_total_flops()) // 2


class _Step(nn.Module):
    """A forward and a backward pass in one call, for the whole of which the weights stand in."""

    def __init__(self, network: nn.Module, bf16: bool, backward: bool) -> None:
        super().__init__()
        self.network = network
        self._bf16 = bf16
        self._backward = backward

    def forward(self, *batch: Any) -> None:
        with norms_as_on_cuda(), vit.lean():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                features = self.network(*batch)
            first = features[0] if isinstance(features, tuple) else features
            if self._backward:
                first.float().sum().backward()


@contextmanager
def norms_as_on_cuda() -> Iterator[None]:
    """Let autocast on CPUs choose float32 for norms, as autocast on CUDA does.

    torch has no switch for it, and a TorchFunctionMode is not seen where blocks are computed again
    in the backward pass: the functions themselves are exchanged meanwhile.
    """
    plain = {name: getattr(functional, name) for name in _FLOAT32_ON_CUDA}
    try:
        for name, function in plain.items():
            setattr(functional, name, partial(_widened, function))
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)


def _widened(function: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any) -> Tensor:
    """Call `function` with `x` in float32 under autocast."""
    return function(x.float() if torch.is_autocast_enabled("cpu") else x, *others, **options)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from where an operator makes them to where they are given up.

    Works on fake and on real tensors. known: tensors that are there already and do not count.
    `now` and `peak` in bytes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._given_up, key, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _given_up(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

"""The rotation of positions as GPUs compute it, held to the plain one."""

from __future__ import annotations

import pytest
import torch

from mlcd.models import vit
from mlcd.models.footprint import LiveBytes

BATCH, HEADS, SIDE, HEAD = 3, 2, 4, 8


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as a block has them, a view of a wider tensor; angles; a gradient."""
    generator = torch.Generator().manual_seed(0)
    tokens = 1 + SIDE**2
    wide = torch.randn(BATCH, tokens, 3, HEADS, HEAD, generator=generator).to(dtype)
    x = wide.permute(2, 0, 3, 1, 4)[0].detach().requires_grad_()
    patches = vit.patch_angles(SIDE, SIDE, HEAD, torch.device("cpu"))
    angles = torch.cat([torch.randn(1, HEAD // 2, generator=generator), patches])
    gradient = torch.randn(x.shape, generator=generator).to(dtype)
    return x, angles.requires_grad_(), gradient


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_the_lean_rotation_is_the_plain_one(dtype: torch.dtype, error: float) -> None:
    x, angles, gradient = problem(dtype)
    expected = vit.turned(x, angles)
    found = vit.turned_lean(x, angles)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=error)
    by_x, by_angle = torch.autograd.grad(expected, (x, angles), gradient)
    lean_x, lean_angle = torch.autograd.grad(found, (x, angles), gradient)
    torch.testing.assert_close(lean_x, by_x, rtol=0, atol=error)
    # Angles of patches are constants: only the class token's are learned.
    torch.testing.assert_close(lean_angle[0], by_angle[0], rtol=error, atol=error)
    assert not lean_angle[1:].any()


def test_the_lean_rotation_makes_no_copy_in_float32() -> None:
    x, angles, _ = problem(torch.bfloat16)
    plain, lean = LiveBytes([x, angles]), LiveBytes([x, angles])
    with plain:
        vit.turned(x, angles)
    with lean:
        vit.turned_lean(x, angles)
    tables = 2 * angles.nbytes
    assert lean.peak == x.nbytes + tables
    assert plain.peak > 3 * lean.peak - tables


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_lean_way() -> None:
    x, angles, gradient = (t.detach().cuda() for t in problem(torch.bfloat16))
    x.requires_grad_()
    found = vit.turned_lean(x, angles)
    torch.testing.assert_close(found, vit.turned(x, angles), rtol=0, atol=2e-2)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found.backward(gradient)
    assert torch.cuda.max_memory_allocated() - before <= 2 * x.nbytes + 4 * angles.nbytes + 4096

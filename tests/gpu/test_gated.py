"""The kernel against what it stands for in plain torch, of real sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from worker.engines.vllm.gated import fits, gated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0),
        reason="the kernel is for Hopper",
    ),
]

#: Of Qwen3-0.6B and 8B, and rows of a tile of 32.
SHAPES = [(1024, 3072), (4096, 12_288)]
ROWS = 8192


def made(depth: int, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values, and a weight that leaves their size as it is."""
    seeded = torch.Generator("cuda").manual_seed(depth)
    values = torch.randn(ROWS, depth, generator=seeded, device="cuda")
    weight = torch.randn(2 * half, depth, generator=seeded, device="cuda") / depth**0.5
    return values.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("depth", "half"), SHAPES)
def test_it_is_the_product_and_its_activation(depth: int, half: int, dtype: torch.dtype) -> None:
    """Summed in float32 and rounded once."""
    values, weight = made(depth, half, dtype)
    assert fits(weight)
    gate, up = (values.float() @ weight.float().T).chunk(2, dim=-1)
    expected = silu(gate) * up
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(gated(values, weight).float(), expected, rtol=step, atol=step / 8)


@pytest.mark.parametrize(("depth", "half"), SHAPES)
def test_a_row_does_not_feel_the_others(depth: int, half: int) -> None:
    values, weight = made(depth, half, torch.bfloat16)
    together = gated(values, weight)
    for some in (slice(0, 1), slice(127, 130), slice(1050, 3000)):
        assert torch.equal(gated(values[some], weight), together[some])


@pytest.mark.parametrize(
    "weight",
    [
        torch.empty(256, 64, dtype=torch.float32),
        torch.empty(256, 72, dtype=torch.bfloat16),
        torch.empty(200, 64, dtype=torch.bfloat16),
    ],
    ids=["float32", "depth", "half"],
)
def test_it_is_not_for_any_weight(weight: Tensor) -> None:
    assert not fits(weight.cuda())

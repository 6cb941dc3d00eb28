"""The kernel against what it stands for in plain torch, run by Triton's interpreter on a CPU.

`tests/gpu/test_gated.py` has the real sizes and dtypes.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from worker.engines.vllm.gated import fits, gated


@pytest.mark.parametrize("rows", [1, 130])
@pytest.mark.parametrize(("depth", "half"), [(64, 128), (192, 256)])
def test_it_is_the_product_and_its_activation(rows: int, depth: int, half: int) -> None:
    """In float32 to the last bits, also where rows fill no block."""
    seeded = torch.Generator().manual_seed(rows + depth)
    values = torch.randn(rows, depth, generator=seeded)
    weight = torch.randn(2 * half, depth, generator=seeded) / depth**0.5
    gate, up = (values.double() @ weight.double().T).chunk(2, dim=-1)
    torch.testing.assert_close(
        gated(values, weight), (silu(gate) * up).float(), rtol=2e-6, atol=2e-6
    )


def test_it_is_not_for_a_cpu() -> None:
    assert not fits(torch.empty(256, 64, dtype=torch.bfloat16))

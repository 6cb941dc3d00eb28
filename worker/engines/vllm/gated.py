"""The first half of an MLP in one kernel: silu(x G) * (x U), with G and U side by side.

By itself vLLM writes the product with both, for an activation to read. A block of this kernel has
the same columns of both, so neither is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

#: Rows and columns of a block, and how much of a row is multiplied at a time.
_HIGH, _WIDE, _DEEP = 128, 128, 64
#: Blocks below each other that are made one after another: what they read is still in the cache.
_GROUP = 8


def fits(weight: Tensor) -> bool:
    """Whether the kernel is made for `weight`, and for the device that it is on: Hopper."""
    return (
        weight.is_cuda
        and torch.cuda.get_device_capability(weight.device) == (9, 0)
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and weight.shape[0] % (2 * _WIDE) == 0
        and weight.shape[1] % _DEEP == 0
    )


@torch.library.custom_op("poc_worker::gated", mutates_args=())
def gated(values: Tensor, weight: Tensor) -> Tensor:
    """silu(values @ G.T) * (values @ U.T), [rows, half], summed in float32 and rounded once.

    `values` is [rows, depth]; `weight`, [2 * half, depth], has G above U. A row's bits do not
    depend on the others, nor on how many there are.
    """
    (rows, depth), half = values.shape, weight.shape[0] // 2
    out = values.new_empty(rows, half)
    blocks = triton.cdiv(rows, _HIGH) * (half // _WIDE)
    programs = min(blocks, _processors(values.device))
    _gated[(programs,)](
        TensorDescriptor.from_tensor(values.contiguous(), [_HIGH, _DEEP]),
        TensorDescriptor.from_tensor(weight.view(2, half, depth), [2, _WIDE, _DEEP]),
        TensorDescriptor.from_tensor(out, [_HIGH, _WIDE]),
        rows,
        HALF=half,
        DEPTH=depth,
        HIGH=_HIGH,
        WIDE=_WIDE,
        DEEP=_DEEP,
        GROUP=_GROUP,
        num_warps=8,
        # A fourth is faster alone, and slower in a forward, which the power of the card limits.
        num_stages=3,
    )
    return out


@gated.register_fake
def _(values: Tensor, weight: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], weight.shape[0] // 2)


class GatedProjection(nn.Module):
    """In a linear layer's place: its product, the activation done, and no bias."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, values: Tensor) -> tuple[Tensor, None]:
        """[rows, depth] to [rows, half]."""
        return gated(values, self.weight), None


def _processors(device: torch.device) -> int:
    if device.type == "cpu":  # in Triton's interpreter: fewer than blocks, so that one has several
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _gated(
    values,
    weight,
    out,
    rows,
    HALF: tl.constexpr,
    DEPTH: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    down, across = tl.cdiv(rows, HIGH), HALF // WIDE
    # Flat, so that the first columns of a block are loaded while the one before is written.
    for block in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        # In groups of rows: the blocks of a group read the same columns of the weight.
        first = block // (GROUP * across) * GROUP
        inside, height = block % (GROUP * across), tl.minimum(down - first, GROUP)
        row, column = (first + inside % height) * HIGH, inside // height * WIDE
        both = tl.zeros((HIGH, 2 * WIDE), tl.float32)
        for depth in range(0, DEPTH, DEEP):
            columns = weight.load([0, column, depth]).reshape(2 * WIDE, DEEP)
            both = tl.dot(values.load([row, depth]), columns.T, both)
        # A thread has the same columns of both, so this moves nothing.
        gate, up = both.reshape(HIGH, 2, WIDE).permute(0, 2, 1).split()
        out.store([row, column], (gate * tl.sigmoid(gate) * up).to(out.dtype))

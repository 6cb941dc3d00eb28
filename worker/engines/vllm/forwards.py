"""Forwards of our own on the deployed weights, beside the one that vLLM compiled.

There are two reasons for one. A scheme may edit what layers give. And nobody reads what the last
layer makes of positions but the last: its attention needs the keys and values of all of them, but
from there on each position is by itself, so `o_proj`, the MLP and the final norm are for the last
position of each sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from worker.engines.vllm import internals
from worker.schemes.layers import Edit, decoder_layers

#: Rows in one go behind the last attention, always: a product of another number of rows may be
#: summed in another order, and a proof must not feel its tile.
ROWS = 32


class OwnForward:
    """A forward as `internals.HiddenAt`; compiles at its first call, if vLLM compiles.

    `layers` gives two values for all tokens, `tail` takes the rows of both that count, and gives
    normed hidden states.
    """

    def __init__(
        self, layers: internals.Layers, tail: Callable[..., Tensor], last_layer: str
    ) -> None:
        """`last_layer` is what a profile says of it: pruned, or whole."""
        self._layers, self._tail, self.last_layer = layers, tail, last_layer

    def __call__(self, embeddings: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Normed hidden states at `rows`, [rows, hidden_size]."""
        one, other = self._layers(embeddings, positions)
        count = len(rows)
        filled = torch.cat([rows, rows[-1:].expand(-count % ROWS)]).view(-1, ROWS)
        parts = [self._tail(one[some], other[some]) for some in filled]
        return torch.cat(parts)[:count]


def pruned(worker: Any, edit: Edit) -> OwnForward | None:
    """The forward of the deployed model with edited layers, the last one pruned.

    None if that layer is of an unknown kind.
    """
    inner = internals.inner_model(worker)
    last = len(decoder_layers(internals.model_of(worker))) - 1
    # What an edit makes of the values of any layer, it makes of those of one that changes nothing.
    edited = edit(last, internals.AsTwo())
    halves = internals.halves(
        inner.layers[last], lambda hidden, residual: inner.norm(*edited(hidden, residual))
    )
    if halves is None:
        return None
    first, second = halves

    def wrap(index: int, layer: nn.Module) -> nn.Module:
        return first if index == last else edit(index, layer)

    return OwnForward(
        internals.own_layers(worker, wrap), internals.compiled(worker, second), "pruned"
    )


def whole(worker: Any, edit: Edit) -> OwnForward:
    """The forward of the deployed model with edited layers.

    Raises `EngineError` if there are none where they are looked for.
    """
    decoder_layers(internals.model_of(worker))
    norm = internals.inner_model(worker).norm

    def tail(hidden: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = norm(hidden, residual)[0]
        return normed

    return OwnForward(internals.own_layers(worker, edit), internals.compiled(worker, tail), "whole")

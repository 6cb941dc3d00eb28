"""Forwards of our own on the deployed weights, beside the one that vLLM compiled.

There are three reasons for one. A scheme may edit what layers give. Nobody reads what the last
layer makes of positions but the last: its attention needs the keys and values of all of them, but
from there on each position is by itself, so `o_proj`, the MLP and the final norm are for the last
position of each sequence alone. And the activation of an MLP can be a part of its first product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from worker.engines.vllm import internals
from worker.engines.vllm.parts import (
    AsTwo,
    Layers,
    Turns,
    after_attention,
    compiled,
    own_layers,
    parts_of,
)
from worker.schemes.layers import Edit, decoder_layers

#: Rows in one go behind the last attention, always: a product of another number of rows may be
#: summed in another order, and a proof must not feel its tile.
ROWS = 32
#: What a profile says of a forward whose layers are vLLM's: the last one is computed at all
#: positions, and the first product of an MLP and its activation are kernels of their own.
WHOLE = {"last_layer": "whole", "mlp": "separate"}


class OwnForward:
    """A forward as `internals.HiddenAt`; compiles at its first call, if vLLM compiles.

    `layers` gives two values for all tokens, `tail` takes the rows of both that count, and gives
    normed hidden states.
    """

    def __init__(
        self, layers: Layers, tail: Callable[..., Tensor], facts: dict[str, str] = WHOLE
    ) -> None:
        """`facts` are what a profile says of it."""
        self._layers, self._tail, self.facts = layers, tail, facts

    def __call__(self, embeddings: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Normed hidden states at `rows`, [rows, hidden_size]."""
        one, other = self._layers(embeddings, positions)
        count = len(rows)
        filled = torch.cat([rows, rows[-1:].expand(-count % ROWS)]).view(-1, ROWS)
        parts = [self._tail(one[some], other[some]) for some in filled]
        return torch.cat(parts)[:count]


def fused(worker: Any, edit: Edit) -> OwnForward | None:
    """As `pruned`, each MLP's first product and activation in one kernel.

    None if that is not for all layers.
    """
    return _in_pieces(worker, edit, fuses=True)


def pruned(worker: Any, edit: Edit) -> OwnForward | None:
    """The forward of the deployed model with edited layers, the last one pruned.

    It is compiled in pieces from one attention to the next: they are alike, so that one is compiled
    for all. None if its layers are of an unknown kind.
    """
    return _in_pieces(worker, edit, fuses=False)


def _in_pieces(worker: Any, edit: Edit, *, fuses: bool) -> OwnForward | None:
    inner, turns = internals.inner_model(worker), Turns()
    deployed = decoder_layers(internals.model_of(worker))
    parts = [each for layer in deployed if (each := parts_of(layer, turns, fuses=fuses))]
    if len(parts) < len(deployed):
        return None
    # What an edit makes of the values of any layer, it makes of those of one that changes nothing.
    edits = [edit(index, AsTwo()) for index in range(len(parts))]
    first, piece = compiled(worker, _first), compiled(worker, _piece)

    def layers(embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        turns.look_up(positions, embeddings.dtype)
        qkv, residual = first(parts[0].before, embeddings, positions)
        for one, other, edited in zip(parts, parts[1:], edits, strict=False):
            attended = one.attend(*qkv)
            qkv, residual = piece(one.layer, edited, other.before, attended, residual, positions)
        return parts[-1].attend(*qkv), residual

    def tail(attended: Tensor, residual: Tensor) -> Tensor:
        last = after_attention(parts[-1].layer, attended, residual)
        normed: Tensor = inner.norm(*edits[-1](*last))[0]
        return normed

    facts = {"last_layer": "pruned", "mlp": "fused" if fuses else "separate"}
    return OwnForward(layers, compiled(worker, tail, dynamic=False), facts)


def _first(before: nn.Module, embeddings: Tensor, positions: Tensor) -> Any:
    return before(positions, embeddings, None)


def _piece(
    layer: Any,
    edited: nn.Module,
    before: nn.Module,
    attended: Tensor,
    residual: Tensor,
    positions: Tensor,
) -> Any:
    """From the attention of one layer to that of the next."""
    return before(positions, *edited(*after_attention(layer, attended, residual)))


def whole(worker: Any, edit: Edit) -> OwnForward:
    """The forward of the deployed model with edited layers.

    Raises `EngineError` if there are none where they are looked for.
    """
    decoder_layers(internals.model_of(worker))
    norm = internals.inner_model(worker).norm

    def tail(hidden: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = norm(hidden, residual)[0]
        return normed

    return OwnForward(own_layers(worker, edit), compiled(worker, tail, dynamic=False))

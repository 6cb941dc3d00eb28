"""A causal language model with its decoder layers edited, beside the one that stays as it is.

Both compute with the same weights in the same memory. Nothing here knows whose model it is: those
of transformers and of vLLM keep their layers in the same places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from torch import nn

from shared.errors import EngineError

M = TypeVar("M", bound=nn.Module)

#: Index and decoder layer to what takes its place.
Edit = Callable[[int, nn.Module], nn.Module]

#: Where a model may have its layers, by the module that owns them: the first that is there counts.
_PLACES = (("model", "layers"), ("transformer", "h"), ("", "layers"))

#: What `nn.Module` itself keeps in every module: hooks, and parameters, buffers and parts by name.
_BOOKKEEPING = frozenset(vars(nn.Module()))


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model, in their order.

    Raises `EngineError` if it has none where they are looked for.
    """
    owner, name = _find(model)
    layers: nn.ModuleList = getattr(owner, name)
    return layers


def edited(model: nn.Module, edit: Edit) -> nn.Module:
    """The inner model, which gives hidden states after the final norm, with its layers edited.

    A shallow copy: parameters and buffers are those of `model`, which keeps its own layers and
    computes as before. Each layer is what `edit` gave for it; `edit` must return another module
    (see `twin`) and leave the one that it gets alone. A call runs the plain forward, even where
    `model` was compiled: that would run the layers that it was compiled with. Raises `EngineError`
    if there are no layers, or a module on the way can't be copied.
    """
    inner, name = _find(model)
    layers: nn.ModuleList = getattr(inner, name)
    own = {str(index): edit(index, layer) for index, layer in enumerate(layers)}
    kind: Any = type(inner)  # mypy takes it for unhashable
    copied: nn.Module = twin(inner, _uncompiled(kind), **{name: twin(layers, **own)})
    return copied


def twin(module: M, kind: type[M] | None = None, /, **parts: nn.Module) -> M:
    """A shallow copy of `module` with other `parts`.

    It is a `kind` if one is given, which should be a subclass of the module's. It shares what
    `module` is made of, but has the books of that to itself: replacing a part or adding a hook is
    seen in one of them only. Raises `EngineError` for a module whose forward was replaced on the
    object, since the copy would run that one, and with it the original's parts.
    """
    if "forward" in vars(module):
        raise EngineError(
            f"{type(module).__name__}: its forward was replaced, as hooks do that move weights "
            "between devices, so its layers can't be edited; load the whole model onto its device"
        )
    kind = kind or type(module)
    copied = kind.__new__(kind)
    vars(copied).update(
        (name, copy.copy(value) if name in _BOOKKEEPING else value)
        for name, value in vars(module).items()
        # What `compile()` made runs the original.
        if name != "_compiled_call_impl"
    )
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied


@cache
def _uncompiled(kind: Any) -> Any:
    """A `kind` whose calls are those of any module: vLLM's run what was compiled, if anything."""

    class Edited(kind):  # type: ignore[misc]
        __call__ = nn.Module.__call__

    return Edited


def _find(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that owns the decoder layers, and its name for them."""
    for part, name in _PLACES:
        owner = getattr(model, part, None) if part else model
        layers = getattr(owner, name, None)
        if isinstance(owner, nn.Module) and isinstance(layers, nn.ModuleList) and len(layers):
            return owner, name
    places = ", ".join(".".join(filter(None, place)) for place in _PLACES)
    raise EngineError(
        f"{type(model).__name__}: has no decoder layers in any of {places}, and this scheme "
        "computes between them; use a text model of another architecture"
    )

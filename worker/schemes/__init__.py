"""Schemes on a device: their tensors. `register` adds one, as it does in `shared.schemes`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from shared.errors import EngineError
from worker.schemes.artifact import ArtifactTensors
from worker.schemes.base import Deployed, Tensors
from worker.schemes.distance import DistanceTensors
from worker.schemes.layers import decoder_layers

__all__ = ["Deployed", "Tensors", "refused", "register", "tensors_of"]

_MADE_BY: dict[str, Callable[[Deployed], Tensors]] = {
    "distance": DistanceTensors,
    "artifact": ArtifactTensors,
}


def register(scheme: str, make: Callable[[Deployed], Tensors]) -> None:
    """Add a scheme."""
    _MADE_BY[scheme] = make


def tensors_of(scheme: str, deployed: Deployed) -> Tensors:
    """The tensors of that scheme. Raises `EngineError` for an unknown one."""
    if scheme not in _MADE_BY:
        known = ", ".join(_MADE_BY)
        raise EngineError(f"there are no tensors for the scheme {scheme!r}; there are {known}")
    return _MADE_BY[scheme](deployed)


def refused(model: nn.Module, tensors: Callable[[str], Tensors]) -> dict[str, str]:
    """The schemes that can't be computed with `model`, and why.

    Those that edit layers, of a model whose layers can't be found. `tensors` gives those of a
    scheme on the model's device.
    """
    try:
        decoder_layers(model)
    except EngineError as error:
        return {scheme: str(error) for scheme in _MADE_BY if tensors(scheme).edits}
    return {}

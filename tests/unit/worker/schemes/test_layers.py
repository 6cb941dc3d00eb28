"""Edited layers beside the model that they were taken from, which must never notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import EngineError
from worker.schemes.layers import decoder_layers, edited, twin


class Layer(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor), requires_grad=False)
        self.register_buffer("offset", torch.tensor(1.0))
        self.attention_type = "full"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.offset


class Halved(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Inner(nn.Module):
    def __init__(self, name: str = "layers") -> None:
        super().__init__()
        self._name = name
        setattr(self, name, nn.ModuleList([Layer(2.0), Layer(3.0)]))
        self.norm = Layer(1.0)

    def forward(self, x: Tensor) -> Tensor:
        for layer in getattr(self, self._name):
            x = layer(x)
        return self.norm(x)


class Outer(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


X = torch.tensor([1.0, 5.0])
#: ((2x + 1) 3 + 1) + 1, and with each layer halved.
PLAIN, HALVED = torch.tensor([11.0, 35.0]), torch.tensor([3.75, 9.75])


def halve(_: int, layer: nn.Module) -> nn.Module:
    return twin(layer, Halved)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Outer(model=Inner()), id="model.layers"),
        pytest.param(Outer(transformer=Inner("h")), id="transformer.h"),
        pytest.param(Inner(), id="layers"),
        pytest.param(
            Outer(model=Inner(), transformer=Outer(h=nn.ModuleList([Layer(9.0)]))), id="first"
        ),
    ],
)
def test_layers_are_found_where_models_have_them(model: nn.Module) -> None:
    weights = [float(layer.weight) for layer in decoder_layers(model)]
    assert weights == [2.0, 3.0]
    assert torch.equal(edited(model, halve)(X), HALVED)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Outer(), id="nowhere"),
        pytest.param(Outer(model=Outer(layers=nn.ModuleList())), id="empty"),
        pytest.param(Outer(model=Outer(layers=Layer(1.0))), id="no list"),
        pytest.param(Outer(language_model=Outer(model=Inner())), id="deeper"),
    ],
)
def test_a_model_without_layers_is_refused(model: nn.Module) -> None:
    for use in (decoder_layers, lambda it: edited(it, halve)):
        with pytest.raises(EngineError, match=r"Outer: has no decoder layers in any of model.lay"):
            use(model)


class TestTheOriginal:
    @pytest.fixture
    def model(self) -> Outer:
        return Outer(model=Inner())

    def test_computes_the_same_before_and_after(self, model: Outer) -> None:
        copied = edited(model, halve)
        for _ in range(2):
            assert torch.equal(model.model(X), PLAIN)
            assert torch.equal(copied(X), HALVED)

    def test_shares_its_numbers(self, model: Outer) -> None:
        copied = edited(model, halve)
        mine, theirs = (
            {**dict(each.named_parameters()), **dict(each.named_buffers())}
            for each in (model.model, copied)
        )
        assert mine.keys() == theirs.keys()
        assert all(mine[name] is theirs[name] for name in mine)
        with torch.no_grad():
            model.model.layers[0].weight.fill_(0.0)
        assert torch.equal(copied(X), torch.tensor([2.25, 2.25]))

    def test_keeps_its_parts_and_their_classes(self, model: Outer) -> None:
        before = dict(model.named_modules())
        edited(model, halve)
        assert dict(model.named_modules()) == before
        assert [type(layer) for layer in model.model.layers] == [Layer, Layer]

    def test_has_none_of_the_hooks_of_its_copy(self, model: Outer) -> None:
        copied: Any = edited(model, halve)
        for each in (copied, copied.layers, copied.layers[1]):
            each.register_forward_hook(lambda *_: torch.zeros(1))
        copied.extra = Layer(1.0)
        copied.layers[0].register_buffer("more", torch.zeros(1))
        assert torch.equal(model.model(X), PLAIN)
        assert not hasattr(model.model, "extra")
        assert not hasattr(model.model.layers[0], "more")


def test_a_twin_has_parts_of_its_own_and_shares_the_others() -> None:
    """Those of the original are neither replaced in it nor copied."""
    original, other = Inner(), Layer(5.0)
    copied = twin(original, norm=other)
    assert copied.norm is other
    assert original.norm is not other
    assert copied.layers is original.layers
    assert torch.equal(original(X), PLAIN)


class TestTheCopy:
    def test_is_what_it_is_a_copy_of(self) -> None:
        copied: Any = edited(Inner(), halve)
        assert isinstance(copied, Inner)
        assert [layer.attention_type for layer in copied.layers] == ["full", "full"]
        assert not copied.eval().training

    def test_gets_each_layer_with_its_index(self) -> None:
        seen: list[tuple[int, float]] = []

        def watch(index: int, layer: nn.Module) -> nn.Module:
            seen.append((index, float(layer.weight)))
            return layer

        edited(Inner(), watch)
        assert seen == [(0, 2.0), (1, 3.0)]

    def test_does_not_run_what_the_original_was_compiled_to(self) -> None:
        """By torch, or in a `__call__` of its own as vLLM does."""

        class Compiled(Inner):
            def __call__(self, *_: Any) -> Tensor:
                raise AssertionError

        original = Compiled()
        for module in (original, original.layers[0]):
            module._compiled_call_impl = original.__call__
        assert torch.equal(edited(original, halve)(X), HALVED)

    @pytest.fixture(params=["inner", "layer"])
    def replaced(self, request: pytest.FixtureRequest) -> Inner:
        """A model with a forward that is an attribute of one of its objects."""
        model = Inner()
        module = model if request.param == "inner" else model.layers[1]
        module.forward = module.forward
        return model

    def test_is_refused_where_the_original_would_run(self, replaced: Inner) -> None:
        with pytest.raises(EngineError, match="its forward was replaced"):
            edited(replaced, halve)

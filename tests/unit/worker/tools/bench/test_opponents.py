"""Opponents are honest: the published algorithm gives our distances, the limit counts it all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest
import torch
import transformers
from rich.status import Status

from shared.config import PoCConfig
from shared.errors import ConfigError
from worker import gpu_random
from worker.engines import Engine, Job
from worker.engines.transformers_engine import TransformersEngine
from worker.tools.bench.opponents import (
    Limit,
    flops_a_nonce,
    on_its_forward,
    on_our_forward,
    published_of,
)
from worker.tools.bench.published import Published
from worker.tools.bench.run import Opponents, Plan
from worker.tools.make_model import make_model

NONCES = (0, 1, 7, 2**62)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    """A tiny model, two sequences in a forward."""
    path = make_model(tmp_path_factory.mktemp("bench") / "model", hidden_size=32, vocab_size=160)
    engine = TransformersEngine(str(path), device="cpu", tile=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def published(engine: TransformersEngine) -> Published:
    return published_of(engine.info)


def test_the_published_algorithm_gives_our_distances(
    engine: TransformersEngine, published: Published
) -> None:
    """Else it would be no opponent."""
    ours = engine.submit(Job("b", "k", NONCES, 9)).result()
    theirs = published.distances("b", "k", NONCES, 9, published.target("b"))
    assert theirs == pytest.approx(ours, abs=2e-6)


def test_its_generator_gives_our_numbers(published: Published) -> None:
    """Permutations to the bit, normals to 2e-6."""
    device = torch.device("cpu")
    permutations = gpu_random.generate_permutations("b", "k", NONCES, 160, device)
    assert torch.equal(published.permutations("b", "k", NONCES), permutations)
    inputs = gpu_random.generate_inputs("b", "k", NONCES, 32, 5, device, torch.float32)
    torch.testing.assert_close(published.inputs("b", "k", NONCES, 5), inputs, atol=2e-6, rtol=0)


def test_both_forms_compute_new_nonces_batch_by_batch(
    engine: TransformersEngine, published: Published, config: PoCConfig
) -> None:
    """As it is published a batch is one forward, and on our forward a tile is."""
    sizes: list[int] = []
    counting = Published(
        published.hidden_size,
        published.vocab_size,
        published.device,
        published.dtype,
        lambda inputs: sizes.append(len(inputs)) or published.forward(inputs),
    )
    assert on_its_forward(counting, config).turn(0.0)[0] == config.batch_size == 4
    ours = on_our_forward(counting, config, engine)
    assert ours is not None
    assert ours.turn(0.0)[0] == 2
    assert sizes == [4, 2]


def test_a_model_that_there_is_no_room_for(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which setting leaves room."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ConfigError, match=r"9 GiB.*POC_GPU_MEMORY_UTILIZATION=0\.6"):
        published_of(engine.info)


def test_a_model_that_the_published_algorithm_has_no_forward_for(
    engine: TransformersEngine, config: PoCConfig, tmp_path: Path
) -> None:
    """It is quantized: what is missing is said, and all others are measured."""
    shutil.copytree(engine.info.model, tmp_path, dirs_exist_ok=True)
    plain = json.loads((tmp_path / "config.json").read_text())
    quantized = plain | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    engine_of_it = SimpleNamespace(info=replace(engine.info, model=str(tmp_path)))
    plan = Plan(against=("published",))
    opponents = Opponents(plan, cast(Engine, engine_of_it), cast(Status, Mock()))
    found, missing = opponents.of(config)
    assert found == []
    assert "is quantized" in missing["published"]


@pytest.mark.parametrize("seq_len", [1, 16])
def test_the_operations_of_a_forward_are_counted(seq_len: int) -> None:
    """Every product with a weight, and of attention what is not masked."""
    config = transformers.Qwen3Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        vocab_size=160,
        attn_implementation="eager",
    )
    model = transformers.Qwen3ForCausalLM(config)
    counted: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda layer, _, out: counted.append(2 * out.numel() * layer.in_features)
            )
    with torch.no_grad():
        model(inputs_embeds=torch.zeros(1, seq_len, 32), use_cache=False, logits_to_keep=1)
    pairs = seq_len * (seq_len + 1) // 2  # of positions, one of which looks at the other
    looks = 3 * 4 * pairs  # in all layers and heads
    # A look is a product of two heads of 16, and one more with what is seen.
    assert flops_a_nonce(config, seq_len) == sum(counted) + looks * 2 * (2 * 16)


def test_the_limit_is_a_rate_of_nonces(engine: TransformersEngine) -> None:
    """Two sequences twice as long cost more than twice as much."""
    short, long = Limit(engine.info, 8), Limit(engine.info, 16)
    assert long.flops_a_nonce > 1.5 * short.flops_a_nonce
    nonces, seconds = short.turn(0.0)
    assert nonces > 0
    assert seconds > 0

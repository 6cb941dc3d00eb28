"""Whole models of transformers, reflected: against a computation that has no code of ours.

But for SHA-256 seeds, hashes and normals, which golden vectors hold.
"""

from __future__ import annotations

import base64
import copy
import math
import struct
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plain_artifacts import finished, unit
from worker import gpu_random
from worker.engines import Job
from worker.engines.checkpoint import DENSE
from worker.schemes.artifact import ArtifactTensors, Reflections
from worker.schemes.base import Deployed
from worker.schemes.layers import decoder_layers, edited

HIDDEN, SEQ_LEN, LAYERS, K = 32, 12, 3, 12
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
#: What some architectures have besides; a window shorter than SEQ_LEN.
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5},
    "mistral": {"sliding_window": 5},
    "qwen3": {"head_dim": 8},
}
NONCES = (0, 3, 4, 1_000_003)
JOB = Job("B10C", "node", NONCES, SEQ_LEN)

#: L2 between vectors after float16, also where a sum may be rounded to another bfloat16. Vectors
#: of another block, or without reflections, are farther away than FAR.
TOLERANCE, FAR = {torch.float32: 1e-3, torch.bfloat16: 0.02}, 0.1


def model_of(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
    config = transformers.AutoConfig.for_model(architecture, **SIZES, **MORE.get(architecture, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        )
    return model.eval().requires_grad_(False)


def hooked(model: Any, block_hash: str) -> Any:
    """A deep copy whose layers have hooks that reflect, in plain words."""
    model = copy.deepcopy(model)

    def reflect(v: Tensor) -> Any:
        def hook(_: nn.Module, __: Any, x: Tensor) -> Tensor:
            v_ = v.to(x.dtype)
            along = torch.stack([(row * v_).double().sum() for row in x.flatten(0, 1)])
            return x - 2 * along.to(x.dtype).view(*x.shape[:-1], 1) * v_

        return hook

    for index, layer in enumerate(model.model.layers):
        v = torch.tensor(unit(f"{block_hash}_layer_{index}_householder", HIDDEN))
        layer.register_forward_hook(reflect(v))
    return model


@torch.inference_mode()
def reference(model: Any) -> list[list[float]]:
    """The vectors of NONCES by the forward of `model`, each nonce on its own."""
    rows = gpu_random.generate_inputs(
        JOB.block_hash, JOB.public_key, NONCES, HIDDEN, SEQ_LEN, "cpu", model.dtype
    ).split(1)
    hidden = [model.model(inputs_embeds=row, use_cache=False)[0][0, -1].tolist() for row in rows]
    stem = f"{JOB.block_hash}_{JOB.public_key}_nonce_"
    return [finished(each, f"{stem}{nonce}") for each, nonce in zip(hidden, NONCES, strict=True)]


def last_hidden(inner: Any, inputs: Tensor) -> Tensor:
    hidden: Tensor = inner(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
    return hidden


@torch.inference_mode()
def proofs_of(model: Any) -> list[str | None]:
    """The vectors of NONCES by the scheme, in one tile."""
    deployed = Deployed(LAYERS, HIDDEN, SIZES["vocab_size"], torch.device("cpu"), model.dtype)
    tensors = ArtifactTensors(deployed)
    inner = edited(model, tensors.edit)
    inputs, prepared = tensors.make(JOB, NONCES)
    tensors.enter(JOB)
    rows = tensors.read(last_hidden(inner, inputs), prepared, JOB)
    return tensors.proofs(rows, JOB)


def apart(texts: list[str | None], expected: list[list[float]]) -> list[float]:
    found = [struct.unpack("<12e", base64.b64decode(text or "")) for text in texts]
    return [math.dist(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("architecture", sorted(DENSE))
def test_vectors_are_those_of_an_independent_computation(
    architecture: str, dtype: torch.dtype
) -> None:
    model = model_of(architecture, dtype)
    found = proofs_of(model)
    assert max(apart(found, reference(hooked(model, JOB.block_hash)))) < TOLERANCE[dtype]
    for other in (model, hooked(model, "another")):
        assert min(apart(found, reference(other))) > FAR


@torch.inference_mode()
def test_the_original_has_the_same_bits_before_during_and_after() -> None:
    model = model_of("qwen3", torch.bfloat16)
    inputs = torch.randn(2, SEQ_LEN, HIDDEN, dtype=torch.bfloat16)
    before = model(inputs_embeds=inputs, use_cache=False).logits
    reflections = Reflections(LAYERS, HIDDEN, torch.device("cpu"))
    inner = edited(model, reflections.edit)
    seen: list[Tensor] = []
    # While the copy is in its second layer, whose attention both share.
    handle = inner.layers[1].register_forward_hook(
        lambda *_: seen.append(model(inputs_embeds=inputs, use_cache=False).logits)
    )
    reflections.use("b10c")
    reflected = last_hidden(inner, inputs)
    handle.remove()
    after = model(inputs_embeds=inputs, use_cache=False).logits
    assert torch.equal(before, seen[0])
    assert torch.equal(before, after)
    assert not torch.equal(reflected, last_hidden(model.model, inputs))
    assert torch.equal(reflected, last_hidden(inner, inputs))


@torch.inference_mode()
def test_a_nonce_has_the_same_bits_whatever_block_came_between() -> None:
    model = model_of("qwen3")
    reflections = Reflections(LAYERS, HIDDEN, torch.device("cpu"))
    inner, inputs = edited(model, reflections.edit), torch.randn(2, SEQ_LEN, HIDDEN)
    found = []
    for block in ("A", "B", "A"):
        reflections.use(block)
        found.append(last_hidden(inner, inputs))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_layers_keep_what_the_model_asks_them_for() -> None:
    """Gemma's model looks at the kind of attention that each of them has."""
    model = model_of("gemma3_text")
    inner: Any = edited(model, Reflections(LAYERS, HIDDEN, torch.device("cpu")).edit)
    for mine, theirs in zip(decoder_layers(model), inner.layers, strict=True):
        assert isinstance(theirs, type(mine))
        assert theirs.self_attn is mine.self_attn
        assert theirs.config is mine.config
    assert inner.state_dict().keys() == model.model.state_dict().keys()


def test_gradient_checkpoints_do_not_matter() -> None:
    """They wrap the forward of each class of layers, and so that of ours."""
    model = model_of("qwen3").train()
    reflections = Reflections(LAYERS, HIDDEN, torch.device("cpu"))
    reflections.use("b10c")
    inputs = torch.randn(1, SEQ_LEN, HIDDEN, requires_grad=True)
    expected = last_hidden(edited(model, reflections.edit), inputs)
    for layer in model.model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    found = last_hidden(edited(model, reflections.edit), inputs)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert inputs.grad is not None


@pytest.mark.slow
@torch.inference_mode()
def test_the_edited_model_can_be_traced_whole() -> None:
    """Without a break of the graph; a later block is seen by what was traced."""
    model = model_of("qwen3")
    reflections = Reflections(LAYERS, HIDDEN, torch.device("cpu"))
    inner, inputs = edited(model, reflections.edit), torch.randn(2, SEQ_LEN, HIDDEN)
    traced = torch.compile(inner, fullgraph=True, dynamic=False, backend="eager")
    for block in ("A", "B"):
        reflections.use(block)
        assert torch.equal(last_hidden(traced, inputs), last_hidden(inner, inputs))

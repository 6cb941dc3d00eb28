"""vLLM and transformers give the same distances, whatever the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, job
from small import CONFIGS

from worker.engines.checkpoint import fingerprint
from worker.engines.transformers_engine import TransformersEngine
from worker.engines.vllm.engine import ARCHITECTURES, VllmEngine
from worker.tools.make_model import make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

NONCES = (0, 1, 2, 17, 2**40, 2**63 - 1)


def reference(directory: Path, **changes: Any) -> list[float]:
    """What transformers says; its own tests hold it against a plain forward."""
    # Not through the engine: it refuses mixtures of experts.
    import torch
    import transformers

    from worker import gpu_random

    work = job(*NONCES, **changes)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    size, width = model.config.vocab_size, model.config.hidden_size
    with torch.inference_mode():
        inputs = gpu_random.generate_inputs(
            "b", "k", NONCES, width, work.seq_len, "cpu", torch.float32, work.strong_rng
        )
        logits = [model(inputs_embeds=row).logits[:, -1] for row in inputs.split(1)]
        permutations = gpu_random.generate_permutations("b", "k", NONCES, size, "cpu")
        target = gpu_random.generate_target("b", size, "cpu")
        distances: list[float] = gpu_random.compute_distances(
            torch.cat(logits), permutations, target
        ).tolist()
    return distances


def test_every_architecture_is_tested() -> None:
    """The allow-list promises no more."""
    assert set(CONFIGS) == ARCHITECTURES


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_equals_transformers(
    architecture: str, checkpoint: Callable[[str], Path], load: Callable[..., VllmEngine]
) -> None:
    """In float32; the same nonce alone or beside 6, 31 or 32 others has the same bits."""
    directory = checkpoint(architecture)
    engine = load(directory)
    distances = engine.submit(job(*NONCES)).result()
    assert distances == pytest.approx(reference(directory), abs=1e-5)
    assert len(set(distances)) == len(NONCES)

    together = engine.submit(job(*range(33))).result()
    for batch in ([0], [32], range(7), range(26, 33), range(32)):
        alone = engine.submit(job(*batch)).result()
        assert alone == [together[nonce] for nonce in batch]


#: Rotary positions that both engines are trusted with, beside the default.
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    # Different enough to show which of the two is taken.
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(16)],
        "long_factor": [4.0 + i for i in range(16)],
        "original_max_position_embeddings": 64,
    },
}


@pytest.fixture
def roped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with rotary positions of the kind that the test asks for."""
    kind = request.param
    model = make_model(tmp_path / kind, head_dim=32, vocab_size=160, max_seq_len=128)
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": kind, "rope_theta": 10_000.0, **ROPES[kind]}
    if kind == "longrope":  # where it is read on the architecture that has it
        config["original_max_position_embeddings"] = 64
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("roped", sorted(ROPES), indirect=True)
def test_rotary_positions(roped: Path, load: Callable[..., VllmEngine]) -> None:
    """Each kind that is not refused is the same one for both engines, up to its last position."""
    engine = load(roped, max_model_len=None)
    longest = 64 if "longrope" in str(roped) else 128
    assert engine.info.max_seq_len == longest
    for seq_len in (33, longest):
        expected = reference(roped, seq_len=seq_len)
        got = engine.submit(job(*NONCES, seq_len=seq_len)).result()
        assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seq_len", [1, 31, 32, 33, 128])
def test_every_length_of_a_sequence(
    seq_len: int, driver: Driver, checkpoint: Callable[[str], Path]
) -> None:
    """Around the size of a block, and up to the model's positions."""
    expected = reference(checkpoint("qwen3"), seq_len=seq_len)
    assert driver.distances(*NONCES, seq_len=seq_len) == pytest.approx(expected, abs=1e-5)


def test_strong_inputs(driver: Driver, checkpoint: Callable[[str], Path]) -> None:
    """All bits of the seed reach vLLM's process."""
    expected = reference(checkpoint("qwen3"), strong_rng=True)
    assert driver.distances(*NONCES, strong_rng=True) == pytest.approx(expected, abs=1e-5)


def test_the_compiled_forward(
    checkpoint: Callable[[str], Path], load: Callable[..., VllmEngine]
) -> None:
    """What runs on a GPU unless `enforce_eager`: other kernels, the same numbers."""
    engine = load(checkpoint("qwen3"), {"enforce_eager": False})
    assert engine.info.profile["forward"] == "compiled"
    assert engine.info.profile["last_layer"] == "pruned"
    expected = reference(checkpoint("qwen3"))
    assert engine.submit(job(*NONCES)).result() == pytest.approx(expected, abs=1e-5)


def test_two_ranks(
    checkpoint: Callable[[str], Path],
    load: Callable[..., VllmEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensor parallel: each rank makes the same inputs."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # two ranks, one NUMA node
    engine = load(checkpoint("qwen3"), tensor_parallel=2)
    assert engine.info.profile["tensor_parallel"] == "2"
    expected = reference(checkpoint("qwen3"))
    assert engine.submit(job(*NONCES)).result() == pytest.approx(expected, abs=1e-5)


def test_both_engines_agree_on_what_the_model_is(
    driver: Driver, checkpoint: Callable[[str], Path]
) -> None:
    """The same fingerprint and bounds, so both may work on one round; not the same profile."""
    other = TransformersEngine(str(checkpoint("qwen3")), device="cpu")
    ours, theirs = driver.engine.info, other.info
    other.close()
    assert ours.fingerprint == theirs.fingerprint == fingerprint(checkpoint("qwen3"))
    assert (ours.vocab_size, ours.hidden_size) == (theirs.vocab_size, theirs.hidden_size)
    assert ours.profile != theirs.profile
    assert ours.profile["quantization"] == theirs.profile["quantization"] == "none"

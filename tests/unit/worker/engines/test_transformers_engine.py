"""The transformers engine: the model's own numbers, whatever the batch, and readable refusals."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from shared.errors import EngineError
from tiny import HIDDEN_SIZE, SEQ_LEN, VOCAB_SIZE, job
from worker import gpu_random
from worker.engines import JobCancelled
from worker.engines.checkpoint import fingerprint
from worker.engines.transformers_engine import ARCHITECTURES, TransformersEngine
from worker.tools.make_model import make_model

#: Shorter than SEQ_LEN, so that a mask that is off by one shows.
SLIDING_WINDOW = 5

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=SLIDING_WINDOW, final_logit_softcapping=0.5
    ),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=SLIDING_WINDOW
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=SLIDING_WINDOW),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
}

ARTIFACT: dict[str, Any] = {"scheme": "artifact", "parameters": {"k_dim": 12}}

LoadEngine = Callable[..., TransformersEngine]


def distances_of(logits: Tensor, nonces: tuple[int, ...]) -> list[float]:
    vocab_size = logits.shape[1]
    permutations = gpu_random.generate_permutations("b", "k", nonces, vocab_size, "cpu")
    target = gpu_random.generate_target("b", vocab_size, "cpu")
    return gpu_random.compute_distances(logits, permutations, target).tolist()


def inputs_of(nonces: tuple[int, ...], dtype: torch.dtype, strong_rng: bool = False) -> Tensor:
    return gpu_random.generate_inputs(
        "b", "k", nonces, HIDDEN_SIZE, SEQ_LEN, "cpu", dtype, strong_rng=strong_rng
    )


@torch.inference_mode()
def reference(
    directory: Path, nonces: tuple[int, ...], dtype: torch.dtype, strong_rng: bool = False
) -> list[float]:
    """Each nonce on its own, eager attention, logits of all positions: no code of the engine."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    )
    rows = inputs_of(nonces, dtype, strong_rng).split(1)
    logits = [model(inputs_embeds=row, use_cache=False).logits[:, -1] for row in rows]
    return distances_of(torch.cat(logits), nonces)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random checkpoint of an architecture; not to be written to."""
    made: dict[str, Path] = {}

    def checkpoint(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(architecture)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
            model.save_pretrained(made[architecture])
        return made[architecture]

    return checkpoint


class TestNumbers:
    """What it computes is what the model computes."""

    def test_every_architecture_is_tested(self) -> None:
        assert set(CONFIGS) == ARCHITECTURES

    @pytest.mark.parametrize("architecture", sorted(CONFIGS))
    def test_equals_the_plain_forward(
        self, architecture: str, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        directory = checkpoint(architecture)
        nonces = (0, 1, 2, 17, 2**40, 2**63 - 1)
        distances = load(directory, tile=4).submit(job(*nonces)).result()
        expected = reference(directory, nonces, torch.float32)
        assert distances == pytest.approx(expected, abs=1e-6)
        assert len(set(distances)) == len(nonces)

    def test_strong_inputs(self, checkpoint: Callable[[str], Path], load: LoadEngine) -> None:
        directory = checkpoint("qwen3")
        engine = load(directory)
        strong = engine.submit(job(1, 2, strong_rng=True)).result()
        assert strong == pytest.approx(reference(directory, (1, 2), torch.float32, True), abs=1e-6)
        assert strong != pytest.approx(engine.submit(job(1, 2)).result(), abs=1e-3)

    def test_the_soft_cap_counts(self, checkpoint: Callable[[str], Path], load: LoadEngine) -> None:
        """A bare head would give other distances."""
        directory = checkpoint("gemma2")
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        with torch.inference_mode():
            hidden = model.model(inputs_embeds=inputs_of((3,), torch.float32), use_cache=False)[0]
            bare = distances_of(model.lm_head(hidden)[:, -1], (3,))
        assert load(directory).submit(job(3)).result() != pytest.approx(bare, abs=1e-5)

    def test_a_dtype_of_choice(self, checkpoint: Callable[[str], Path], load: LoadEngine) -> None:
        directory = checkpoint("llama")
        engine = load(directory, dtype="bfloat16")
        assert engine.info.profile["dtype"] == "bfloat16"
        expected = reference(directory, (5, 6), torch.bfloat16)
        assert engine.submit(job(5, 6)).result() == pytest.approx(expected, abs=2e-2)

    def test_dtype_auto_is_the_checkpoints(self, load: LoadEngine, tmp_path: Path) -> None:
        engine = load(make_model(tmp_path / "half", dtype="bfloat16"))
        assert engine.info.profile["dtype"] == "bfloat16"

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("architecture", sorted(CONFIGS))
    def test_a_distance_does_not_depend_on_the_batch(
        self, architecture: str, dtype: str, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        """Bit for bit: alone, shifted in the tile, or beside other nonces."""
        engine = load(checkpoint(architecture), tile=4, dtype=dtype)
        together = dict(zip(range(11), engine.submit(job(*range(11))).result(), strict=True))
        for batch in ([4], [10], [9, 1, 5], list(range(3, 9))):
            assert engine.submit(job(*batch)).result() == [together[nonce] for nonce in batch]

    def test_every_forward_has_the_shape_of_a_tile(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"))
        shapes: list[tuple[int, ...]] = []
        engine._model.lm_head.register_forward_hook(
            lambda _module, _args, logits: shapes.append(tuple(logits.shape))
        )
        assert len(engine.submit(job(*range(9))).result()) == 9
        assert engine.submit(job()).result() == []
        assert shapes == [(8, 1, VOCAB_SIZE)] * 2  # one position of logits only

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_logits_that_are_not_finite_hurt_their_nonce_only(
        self, bad: float, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"), tile=4)
        healthy = engine.submit(job(*range(4))).result()

        def poison(_module: Any, _args: Any, logits: Tensor) -> None:
            logits[2, :, 7] = bad

        engine._model.lm_head.register_forward_hook(poison)
        distances = engine.submit(job(*range(4))).result()
        assert distances[2] is None
        assert distances[:2] + distances[3:] == healthy[:2] + healthy[3:]


class TestInfo:
    """What an engine says of itself."""

    def test_sizes_and_profile(self, model_dir: Path, load: LoadEngine) -> None:
        info = load(model_dir, tile=3).info
        assert (info.model, info.device) == (str(model_dir), "cpu")
        assert (info.vocab_size, info.hidden_size, info.max_seq_len) == (160, 32, 64)
        assert (info.profile["engine"], info.profile["tile"]) == ("transformers", "3")
        assert info.profile["quantization"] == "none"
        assert info.fingerprint == fingerprint(model_dir)

    def test_a_scheme_between_layers_that_it_does_not_find(
        self, model_dir: Path, load: LoadEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It says so before it is asked, and computes the others."""
        assert load(model_dir).info.without == {}
        monkeypatch.setattr("worker.schemes.layers._PLACES", (("model", "blocks"),))
        engine = load(model_dir)
        (scheme,) = engine.info.without
        assert scheme == "artifact"
        assert "has no decoder layers in any of model.blocks" in engine.info.without[scheme]
        assert len(engine.submit(job(1, 2)).result()) == 2

    def test_forwards_of_a_scheme_are_timed_with_numbers(
        self, model_dir: Path, load: LoadEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until a block is in use layers would be reflected at what is none."""
        engine, seen = load(model_dir, tile=2), []
        forward = engine._forward_of("artifact")
        monkeypatch.setattr(
            engine, "_forward_of", lambda _: lambda inputs: seen.append(forward(inputs))
        )
        engine.time_forwards(SEQ_LEN, 0.01, "artifact")
        assert all(output.isfinite().all() for output in seen)

    def test_busy_seconds_grow_with_work_only(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"))
        assert engine.busy_seconds == 0
        engine.submit(job(1)).result()
        assert engine.busy_seconds > 0

    def test_forwards_alone_are_timed_in_whole_tiles(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        """For `poc bench`: they are no jobs, so they do not make the engine busy."""
        engine = load(checkpoint("qwen3"), tile=3)
        nonces, seconds = engine.time_forwards(8, 0.01)
        assert nonces > 0
        assert nonces % 3 == 0
        assert seconds >= 0.01
        assert engine.busy_seconds == 0
        with pytest.raises(EngineError, match="seq_len=0"):
            engine.time_forwards(0, 0.01)
        engine.close()
        with pytest.raises(EngineError, match="the engine is closed"):
            engine.time_forwards(8, 0.01)

    def test_shards_are_loaded_and_counted(
        self, checkpoint: Callable[[str], Path], load: LoadEngine, tmp_path: Path
    ) -> None:
        whole = checkpoint("qwen3")
        model = transformers.AutoModelForCausalLM.from_pretrained(whole)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        shards = sorted(tmp_path.glob("model-*.safetensors"))
        assert len(shards) > 1
        distances = load(tmp_path).submit(job(1)).result()
        assert distances == load(whole).submit(job(1)).result()
        shards[0].unlink()
        with pytest.raises(EngineError, match=f"lacks the weights {shards[0].name}"):
            load(tmp_path)


class TestRefusals:
    """Every refusal says what is wrong and what to do."""

    @pytest.mark.parametrize("device", ["abacus", "meta", "cuda:1"])
    def test_a_device_that_is_not_there(
        self, device: str, model_dir: Path, load: LoadEngine
    ) -> None:
        with pytest.raises(EngineError, match=f"POC_DEVICE={device}: .* use POC_DEVICE=cpu"):
            load(model_dir, device=device)

    @pytest.mark.parametrize("seq_len", [0, 65])
    def test_a_sequence_that_the_model_has_no_positions_for(
        self, seq_len: int, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"))
        with pytest.raises(EngineError, match=f"seq_len={seq_len}: .* 1 to 64 positions"):
            engine.submit(job(1, seq_len=seq_len))


class TestJobs:
    """Jobs run one after the other in the engine's thread."""

    def test_a_job_that_fails_does_not_end_the_engine(
        self, checkpoint: Callable[[str], Path], load: LoadEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = load(checkpoint("qwen3"))

        def fail(*_: Any) -> None:
            raise ValueError("loose wire\nsecond line")

        hook = engine._model.lm_head.register_forward_hook(fail)
        with pytest.raises(EngineError, match=r"can't compute the batch: ValueError: loose wire$"):
            engine.submit(job(1, 2)).result()
        assert "the engine failed on a job of 2 nonces" in caplog.text
        hook.remove()
        assert engine.submit(job(1)).result()[0] > 0

    def test_out_of_memory_says_what_to_lower(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"))

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

        engine._model.lm_head.register_forward_hook(fail)
        with pytest.raises(EngineError, match=r"9 GiB.*lower POC_TILE"):
            engine.submit(job(1)).result()

    def test_close_ends_the_running_job_and_the_queued_ones(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"), tile=1)
        started, go_on = threading.Event(), threading.Event()

        def hold(*_: Any) -> None:
            started.set()
            assert go_on.wait(timeout=30)

        engine._model.lm_head.register_forward_hook(hold)
        running, queued = engine.submit(job(1, 2, 3)), engine.submit(job(4))
        assert started.wait(timeout=30)
        closing = threading.Thread(target=engine.close)
        closing.start()
        assert engine._closing.wait(timeout=30)
        go_on.set()
        closing.join(timeout=30)
        assert not closing.is_alive()

        with pytest.raises(EngineError, match="was closed while it computed"):
            running.result()
        with pytest.raises(JobCancelled):
            queued.result()
        with pytest.raises(EngineError, match="the engine is closed"):
            engine.submit(job(5))
        engine.close()  # twice is once

    @pytest.mark.parametrize("scheme", [{}, ARTIFACT], ids=["distance", "artifact"])
    def test_weights_go_with_their_engine(
        self, scheme: dict[str, Any], checkpoint: Callable[[str], Path]
    ) -> None:
        """At once: the next one, as of a sweep over tiles, may need their memory."""
        gc.disable()
        try:
            engine = TransformersEngine(str(checkpoint("qwen3")), device="cpu")
            engine.submit(job(1, **scheme)).result()
            engine.close()
            weights = weakref.ref(engine._model)
            del engine
            assert weights() is None
        finally:
            gc.enable()

    def test_a_job_that_is_not_begun_can_be_cancelled(
        self, checkpoint: Callable[[str], Path], load: LoadEngine
    ) -> None:
        engine = load(checkpoint("qwen3"))
        started, go_on = threading.Event(), threading.Event()

        def hold(*_: Any) -> None:
            started.set()
            assert go_on.wait(timeout=30)

        engine._model.lm_head.register_forward_hook(hold)
        running, queued = engine.submit(job(1)), engine.submit(job(2))
        assert started.wait(timeout=30)
        assert not running.cancel()
        assert queued.cancel()
        go_on.set()

        assert len(running.result()) == 1
        with pytest.raises(JobCancelled):
            queued.result()

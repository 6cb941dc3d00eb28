"""The transformers engine: the model's own numbers, whatever the batch, and readable refusals."""

from __future__ import annotations

import gc
import json
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import EngineError
from worker import gpu_random
from worker.engines import Job, JobCancelled
from worker.engines.checkpoint import INDEX, fingerprint
from worker.engines.transformers_engine import ARCHITECTURES, TransformersEngine
from worker.tools.make_model import make_model

VOCAB_SIZE = 160
HIDDEN_SIZE = 32
SEQ_LEN = 12
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

ROPE: dict[str, Any] = {"rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}

ARTIFACT: dict[str, Any] = {"scheme": "artifact", "parameters": {"k_dim": 12}}

LoadEngine = Callable[..., TransformersEngine]


def job(*nonces: int, **changes: Any) -> Job:
    return Job(
        **{"block_hash": "b", "public_key": "k", "seq_len": SEQ_LEN, "nonces": nonces, **changes}
    )


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


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A Qwen3 checkpoint of its own, to be written to."""
    return make_model(
        tmp_path / "model",
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        max_seq_len=64,
    )


@pytest.fixture
def load() -> Iterator[LoadEngine]:
    """Engines on the CPU that are closed after the test."""
    engines: list[TransformersEngine] = []

    def load(model: str | Path | None, **options: Any) -> TransformersEngine:
        chosen = {"device": "cpu", **options}
        engines.append(TransformersEngine(None if model is None else str(model), **chosen))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


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

    def test_fingerprint_names_values_not_notes(self, model_dir: Path) -> None:
        before = fingerprint(model_dir)
        edit_json(model_dir / "config.json", transformers_version="9", _name_or_path="/elsewhere")
        assert fingerprint(model_dir) == before
        edit_json(model_dir / "config.json", rms_norm_eps=1e-3)
        assert fingerprint(model_dir) != before

    def test_fingerprint_sees_one_weight(self, model_dir: Path) -> None:
        before = fingerprint(model_dir)
        weights = load_file(model_dir / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(model_dir) != before

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

    @pytest.mark.parametrize("model", [None, ""])
    def test_no_model(self, model: str | None, load: LoadEngine) -> None:
        with pytest.raises(EngineError, match=r"set POC_MODEL .* `poc make-model`"):
            load(model)

    def test_a_path_that_is_not_there(self, load: LoadEngine, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="there is no such directory; set POC_MODEL"):
            load(tmp_path / "nothing")

    def test_a_hub_id_without_the_libraries_that_ask_the_hub(
        self, load: LoadEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where no engine is installed."""
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(EngineError, match=r"someone/model: .* pip install '\.\[cpu\]'"):
            load("someone/model")

    def test_a_hub_id_that_the_hub_does_not_give(
        self, load: LoadEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> str:
            raise OSError("no network")

        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        with pytest.raises(EngineError, match=r"the hub did not give .*no network.*set POC_MODEL"):
            load("owner/name")

    def test_a_directory_without_config(self, load: LoadEngine, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"has no config\.json"):
            load(tmp_path)

    def test_a_directory_without_safetensors(self, model_dir: Path, load: LoadEngine) -> None:
        (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
        with pytest.raises(EngineError, match=r"has no model\.safetensors"):
            load(model_dir)

    def test_other_weights_beside_the_models(self, model_dir: Path, load: LoadEngine) -> None:
        """An engine could load them behind the fingerprint's back."""
        (model_dir / "consolidated.safetensors").write_bytes(b"")
        with pytest.raises(
            EngineError, match=r"holds consolidated\.safetensors beside its weights, model.*move"
        ):
            load(model_dir)

    @pytest.mark.parametrize(
        "name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
    )
    def test_an_adapter(self, name: str, model_dir: Path, load: LoadEngine) -> None:
        """It is applied where another library is installed, under the same fingerprint."""
        (model_dir / name).write_text("{}")
        with pytest.raises(EngineError, match=f"holds an adapter .{name}.*merge it"):
            load(model_dir)

    def test_weights_beside_an_index_of_others(self, model_dir: Path, load: LoadEngine) -> None:
        """VLLM would load the shards, transformers the file that is whole."""
        (model_dir / "shard.safetensors").write_bytes(b"")
        (model_dir / INDEX).write_text('{"weight_map": {"w": "shard.safetensors"}}')
        with pytest.raises(
            EngineError, match=r"holds model\.safetensors beside its weights, shard"
        ):
            load(model_dir)

    def test_an_index_of_the_one_file(self, model_dir: Path, load: LoadEngine) -> None:
        """Is no contradiction, and nothing else is read, whatever lies there."""
        (model_dir / "consolidated.safetensors").write_bytes(b"")
        (model_dir / INDEX).write_text('{"weight_map": {"w": "model.safetensors"}}')
        assert load(model_dir).submit(job(1)).result()

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"w": {}}}']
    )
    def test_an_index_that_cannot_be_read(
        self, text: str, model_dir: Path, load: LoadEngine
    ) -> None:
        """As an interrupted download leaves it."""
        (model_dir / INDEX).write_text(text)
        with pytest.raises(EngineError, match=r"index\.json: can't be read .*download the model"):
            load(model_dir)

    def test_damaged_weights(self, model_dir: Path, load: LoadEngine) -> None:
        (model_dir / "model.safetensors").write_bytes(b"no tensors")
        with pytest.raises(
            EngineError, match=r"is no safetensors file .* download the model again"
        ):
            load(model_dir)

    def test_half_a_file(self, model_dir: Path, load: LoadEngine) -> None:
        """As an interrupted download leaves it."""
        file = model_dir / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(
            EngineError, match=r"ends in the middle of a tensor.*download the model"
        ):
            load(model_dir)

    def test_weights_that_are_missing(self, model_dir: Path, load: LoadEngine) -> None:
        """Left to itself the library would fill them with random numbers."""
        weights = load_file(model_dir / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EngineError, match=r"1 weights are missing, model\.norm\.weight"):
            load(model_dir)

    @pytest.mark.parametrize(
        "model_type",
        ["gemma3", "gemma3n_text", "gpt2", "mamba", "qwen2_5_vl", "qwen3_moe", "qwen3_next"],
    )
    def test_another_architecture(self, model_type: str, model_dir: Path, load: LoadEngine) -> None:
        """Multimodal, recurrent, with per-layer embeddings, a mixture: each by its name."""
        (model_dir / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(EngineError, match=f"'{model_type}' is not supported; use a model of"):
            load(model_dir)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "unheard_of"}, "can't be used"),
            ({"architectures": ["Qwen3Model"]}, "which has no logits head"),
            ({"architectures": None}, "no named class"),
            (
                {
                    "rope_parameters": None,
                    "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
                },
                "mrope",
            ),
            ({"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
            ({"compression_config": {"quant_method": "compressed-tensors"}}, "is quantized"),
            ({"speculators_config": {"algorithm": "eagle"}}, "has speculators_config"),
            ({"dual_chunk_attention_config": {"chunk_size": 8}}, "has dual_chunk_attention_config"),
            ({"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
            (
                {"rope_parameters": ROPE | YARN | {"mscale": 0.7}},
                "rotary positions with mscale, which engines don't agree on",
            ),
            ({"use_bidirectional_attention": True}, "has use_bidirectional_attention True"),
            # One engine obeys it, another passes over it, under one fingerprint.
            ({"is_causal": False}, "has is_causal False"),
            ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor 0.5"),
            ({"rotary_pct": 0.5}, "has rotary_pct 0.5"),
            ({"rotary_emb_fraction": 0.5}, "has rotary_emb_fraction 0.5"),
            ({"bias": True}, "has bias True"),
            ({"qkv_bias": True}, "has qkv_bias True"),
            ({"mlp_bias": True}, "has mlp_bias True"),
            ({"logit_scale": -1.0}, "has logit_scale -1.0"),
            ({"logit_scale": "x"}, "has logit_scale 'x'"),
            ({"llama_4_scaling": {"beta": 1.0}}, "has llama_4_scaling"),
            ({"target_layer_count": 1}, "has target_layer_count 1"),
            (
                {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}
                | {"use_sliding_window": True},
                "a sliding window in some of its layers",
            ),
            (
                {"layer_types": ["chunked_attention"] * 2},
                "layers of the type chunked_attention",
            ),
            ({"sliding_window": 0, "use_sliding_window": True}, "a sliding_window of 0"),
            ({"sliding_window": -1, "use_sliding_window": True}, "a sliding_window of -1"),
            ({"architectures": ["LlamaForCausalLM"]}, "class LlamaForCausalLM, which are two"),
            ({"architectures": "Qwen3Model"}, "holds Qwen3Model, which has no logits head"),
            ({"dtype": None, "torch_dtype": None}, "has no dtype, for which each engine takes"),
            ({"dtype": "float64", "torch_dtype": None}, "has the dtype float64"),
            (
                {
                    "rope_parameters": ROPE
                    | {"rope_type": "longrope", "factor": 3.0}
                    | {"original_max_position_embeddings": 64}
                    | {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
                },
                "rotary positions with factor",
            ),
        ],
    )
    def test_a_config_that_would_give_wrong_numbers(
        self, changes: dict[str, Any], message: str, model_dir: Path, load: LoadEngine
    ) -> None:
        edit_json(model_dir / "config.json", **changes)
        with pytest.raises(EngineError, match=message):
            load(model_dir)

    @pytest.mark.parametrize("both", [True, False])
    def test_names_that_only_some_libraries_complete(
        self, both: bool, model_dir: Path, load: LoadEngine
    ) -> None:
        """Alone, or beside the whole name: which of two tensors counts is up to the library."""
        file = model_dir / "model.safetensors"
        weights = load_file(file)
        name = "model.layers.0.mlp.down_proj.weight"
        weights[name.removeprefix("model.")] = weights[name].clone()
        if not both:
            del weights[name]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(EngineError, match=r"begin neither with model\. nor with lm_head\."):
            load(model_dir)

    def test_a_dtype_that_is_chosen_needs_none_in_the_config(
        self, model_dir: Path, load: LoadEngine
    ) -> None:
        edit_json(model_dir / "config.json", dtype=None, torch_dtype=None)
        assert load(model_dir, dtype="float32").info.profile["dtype"] == "float32"

    def test_a_config_that_asks_for_tuples_changes_nothing(
        self, model_dir: Path, load: LoadEngine
    ) -> None:
        """As old ones do, which is about a library's way to answer."""
        before = load(model_dir).submit(job(0, 1)).result()
        edit_json(model_dir / "config.json", return_dict=False)
        assert load(model_dir).submit(job(0, 1)).result() == before

    def test_code_that_comes_with_a_model_is_not_run(
        self, model_dir: Path, load: LoadEngine
    ) -> None:
        (model_dir / "evil.py").write_text("raise SystemExit('ran')")
        edit_json(
            model_dir / "config.json",
            model_type="evil",
            auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        )
        with pytest.raises(EngineError, match="can't be used"):
            load(model_dir)

    @pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
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


class TestContents:
    """All that is in the files has a meaning, the same for every engine."""

    @pytest.fixture
    def edit(self, model_dir: Path) -> Callable[..., None]:
        """Adds tensors to the weights, or puts them in the place of others."""

        def edit(**tensors: Tensor) -> None:
            file = model_dir / "model.safetensors"
            named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
            save_file(load_file(file) | named, file, metadata={"format": "pt"})

        return edit

    DOWN = "model__layers__0__mlp__down_proj"

    def test_weights_whose_scales_lie_beside_them(
        self, model_dir: Path, load: LoadEngine, edit: Callable[..., None]
    ) -> None:
        """Given float8 that no config explains, it is not computed with as it stands."""
        plain = load_file(model_dir / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
        scaled = {f"{self.DOWN}__weight": plain.to(torch.float8_e4m3fn)}
        edit(**scaled, **{f"{self.DOWN}__weight_scale": torch.tensor(0.5)})
        with pytest.raises(EngineError, match=r"quantized, model\.layers\.0\.mlp\.down_proj"):
            load(model_dir)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("model__layers__0__mlp__down_proj__weight_scale", (1,)),
            ("model__layers__0__mlp__down_proj__bias", (HIDDEN_SIZE,)),
            ("model__layers__7__input_layernorm__weight", (HIDDEN_SIZE,)),
            ("model__mtp__weight", (2, 2)),
        ],
    )
    def test_what_the_model_has_no_place_for(
        self,
        name: str,
        shape: tuple[int, ...],
        model_dir: Path,
        load: LoadEngine,
        edit: Callable[..., None],
    ) -> None:
        """A scale, a bias that the config denies, one layer more: without, it is another model."""
        edit(**{name: torch.zeros(shape)})
        with pytest.raises(EngineError, match=f"no place .*: {name.replace('__', '.')}; it would"):
            load(model_dir)

    def test_a_config_with_fewer_layers(self, model_dir: Path, load: LoadEngine) -> None:
        config = json.loads((model_dir / "config.json").read_text())
        edit_json(
            model_dir / "config.json", num_hidden_layers=1, layer_types=config["layer_types"][:1]
        )
        with pytest.raises(EngineError, match=r"no place .*: model\.layers\.1\.input_layernorm"):
            load(model_dir)

    def test_what_every_library_computes_anew(
        self, model_dir: Path, load: LoadEngine, edit: Callable[..., None]
    ) -> None:
        """It is dead, as in files of older exporters."""
        before = load(model_dir).submit(job(1, 2)).result()
        edit(model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
        assert load(model_dir).submit(job(1, 2)).result() == before

    @pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
    def test_a_quantization_beside_the_config(
        self, name: str, model_dir: Path, load: LoadEngine
    ) -> None:
        """It is read, and part of the model's name."""
        before = fingerprint(model_dir)
        (model_dir / name).write_text('{"quantization": {"quant_algo": "FP8"}}')
        assert fingerprint(model_dir) != before
        with pytest.raises(EngineError, match="is quantized"):
            load(model_dir)

    @pytest.mark.parametrize("equal", [True, False])
    def test_a_head_of_its_own_in_a_tied_model(
        self, equal: bool, model_dir: Path, load: LoadEngine, edit: Callable[..., None]
    ) -> None:
        """Which of two counts is up to the library, so they must be the same."""
        edit_json(model_dir / "config.json", tie_word_embeddings=True)
        embedding = load_file(model_dir / "model.safetensors")["model.embed_tokens.weight"]
        edit(lm_head__weight=embedding.clone() if equal else embedding + 1)
        if equal:
            assert load(model_dir).submit(job(1)).result()
        else:
            with pytest.raises(EngineError, match=r"ties the head .* lm_head\.weight is another"):
                load(model_dir)

    def test_a_tensor_that_comes_twice(self, model_dir: Path, load: LoadEngine) -> None:
        """Which of the two counts is up to the library."""
        (model_dir / "model.safetensors").rename(model_dir / "a.safetensors")
        norm = load_file(model_dir / "a.safetensors")["model.norm.weight"]
        save_file({"model.norm.weight": norm + 1}, model_dir / "b.safetensors")
        names = {"model.norm.weight": "b.safetensors", "lm_head.weight": "a.safetensors"}
        (model_dir / INDEX).write_text(json.dumps({"weight_map": names}))
        with pytest.raises(EngineError, match=r"b\.safetensors: holds model\.norm\.weight, which"):
            load(model_dir)

    @pytest.mark.parametrize("chosen", ["flex_attention", "eager", "someone/kernel", "nonsense"])
    def test_the_config_chooses_no_code(
        self, chosen: str, model_dir: Path, load: LoadEngine
    ) -> None:
        """Attention is ours to choose: another gives other numbers, or none."""
        before = load(model_dir)
        edit_json(
            model_dir / "config.json", attn_implementation=chosen, _attn_implementation=chosen
        )
        after = load(model_dir)
        assert after.info.profile == before.info.profile
        assert after.submit(job(1, 2)).result() == before.submit(job(1, 2)).result()

    @pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot", "num_beams": -1}'])
    def test_how_to_generate_does_not_matter(
        self, text: str, model_dir: Path, load: LoadEngine
    ) -> None:
        """Nothing is generated here."""
        (model_dir / "generation_config.json").write_text(text)
        assert load(model_dir).submit(job(1)).result()

    def test_long_factors_are_not_reached(self, model_dir: Path, load: LoadEngine) -> None:
        """Beyond the original length engines differ in when they take them."""
        factors = [1.0] * 8
        rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        edit_json(
            model_dir / "config.json",
            rope_parameters=ROPE | rope | {"original_max_position_embeddings": 16},
        )
        engine = load(model_dir)
        assert engine.info.max_seq_len == 16
        with pytest.raises(EngineError, match="computes 1 to 16 positions"):
            engine.submit(job(1, seq_len=17))

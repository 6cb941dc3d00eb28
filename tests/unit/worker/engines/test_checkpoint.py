"""Which checkpoints are taken: those that every engine reads alike; and what names them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from shared.errors import EngineError
from tiny import edit_json, job
from worker.engines.checkpoint import INDEX, fingerprint
from worker.engines.transformers_engine import TransformersEngine

ROPE: dict[str, Any] = {"rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}

LoadEngine = Callable[..., TransformersEngine]


class TestFingerprint:
    """It names the values that a model computes with."""

    def test_it_names_values_not_notes(self, model_dir: Path) -> None:
        before = fingerprint(model_dir)
        edit_json(model_dir / "config.json", transformers_version="9", _name_or_path="/elsewhere")
        assert fingerprint(model_dir) == before
        edit_json(model_dir / "config.json", rms_norm_eps=1e-3)
        assert fingerprint(model_dir) != before

    def test_it_sees_one_weight(self, model_dir: Path) -> None:
        before = fingerprint(model_dir)
        weights = load_file(model_dir / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(model_dir) != before


class TestRefusals:
    """Every refusal says what is wrong and what to do."""

    @pytest.mark.parametrize("model", [None, ""])
    def test_no_model(self, model: str | None, load: LoadEngine) -> None:
        with pytest.raises(EngineError, match=r"set POC_MODEL .* `poc make-model`"):
            load(model)

    def test_a_path_that_is_not_there(self, load: LoadEngine, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="there is no such directory; set POC_MODEL"):
            load(tmp_path / "nothing")

    def test_a_file_of_a_model(self, model_dir: Path, load: LoadEngine) -> None:
        with pytest.raises(EngineError, match="is a file; set POC_MODEL to the directory"):
            load(model_dir / "model.safetensors")

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


class TestWhatDoesNotCount:
    """What is in a config and changes no number."""

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

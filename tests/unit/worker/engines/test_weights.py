"""What is in the files of a checkpoint: all of it has a meaning, the same for every engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import EngineError
from tiny import HIDDEN_SIZE, edit_json, job
from worker.engines.checkpoint import INDEX, fingerprint
from worker.engines.transformers_engine import TransformersEngine

LoadEngine = Callable[..., TransformersEngine]


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

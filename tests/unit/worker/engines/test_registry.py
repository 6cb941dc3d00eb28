"""The settings pick the engine; what is its own stands in its file alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import EngineError
from shared.settings import Settings, load_settings
from worker import engines
from worker.engines import BUILT_IN, engine_of, load_engine
from worker.tools.make_model import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that is loaded in no time."""
    return str(make_model(tmp_path_factory.mktemp("registry") / "model"))


def test_auto_is_transformers_without_a_gpu(model: str) -> None:
    """With the settings that are an engine's."""
    engine = load_engine(load_settings({}, model=model, device="cpu", tile=2))
    assert (engine.info.profile["engine"], engine.info.profile["tile"]) == ("transformers", "2")
    engine.close()


@pytest.mark.parametrize(
    ("device", "gpu", "vllm", "name"),
    [
        ("auto", True, True, "vllm"),
        ("cuda", True, True, "vllm"),
        ("auto", False, True, "transformers"),
        ("auto", True, False, "transformers"),
        ("cpu", True, True, "transformers"),
    ],
)
def test_auto_is_vllm_where_it_has_a_gpu(
    device: str, gpu: bool, vllm: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given that vLLM is installed and torch sees a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if vllm else None)
    assert engine_of(load_settings({}, device=device)) == name


def test_what_only_vllm_knows_is_not_ignored(model: str) -> None:
    settings = load_settings({}, model=model, device="cpu", serve_port="0")
    with pytest.raises(
        EngineError, match="POC_SERVE_PORT: only for vllm; unset, or set POC_ENGINE=vllm"
    ):
        load_engine(settings)


def test_each_setting_is_for_all_engines_or_for_one_of_ours() -> None:
    """Given a description with another word and a colon in front, every engine would refuse it."""
    owners = {Settings.engine_of_field(name) for name in Settings.model_fields}
    assert owners - {""} <= BUILT_IN.keys()
    assert Settings.engine_of_field("vllm_options") == "vllm"
    assert Settings.engine_of_field("tile") == ""


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("magic", "there is no such engine; choose auto, vllm, transformers, or module:factory"),
        ("vllm", "vLLM is not installed, and 0.26 up to, not including, 0.34 is supported; "),
        ("no_such_module:make", "can't import 'no_such_module'"),
        ("math:make", "'math' has no callable 'make'"),
    ],
)
def test_an_engine_that_is_not_there(engine: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(load_settings({}, engine=engine))


def test_a_gpu_without_a_driver_is_refused_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given none, whatever the engine; what one of one's own computes on is its own business."""
    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert load_engine(load_settings({}, engine="fake_engine:load", model="fake", gpu="0"))
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(name))
    for engine in ("auto", *BUILT_IN):
        with pytest.raises(EngineError, match=r"POC_GPU=0: .* no NVIDIA driver here \(libcuda"):
            load_engine(load_settings({}, engine=engine, gpu="0"))


def no_library(name: str) -> None:
    """As the loader says it."""
    raise OSError(f"{name}: cannot open shared object file")


def test_a_factory_of_ones_own_gets_the_settings() -> None:
    settings = load_settings({}, engine="fake_engine:load", model="fake?weights=mine")
    assert load_engine(settings).info.fingerprint == "fingerprint-of-mine"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("builtins:id", "no engine but int; an engine has info, busy_seconds, submit, "),
        ("os:getcwd", "it can't be called with the settings"),
    ],
)
def test_a_factory_that_is_none(engine: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(load_settings({}, engine=engine))


@pytest.mark.functional
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_what_an_engine_says_of_itself_costs_no_library(name: str) -> None:
    """A controller has none, and its `poc doctor` asks all the same."""
    script = (
        "import sys\n"
        "from worker.engines import module_of\n"
        f"assert module_of({name!r}).ARCHITECTURES\n"
        "assert not {'torch', 'transformers', 'vllm'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(engines.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_libraries_that_are_missing_are_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given torch without transformers, as in an environment that was made for another program."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "worker.engines.weights", raising=False)
    monkeypatch.delattr(engines, "weights", raising=False)
    with pytest.raises(EngineError, match=r"transformers engine can't be imported .*pip install"):
        load_engine(load_settings({}, engine="transformers", model=model, device="cpu"))

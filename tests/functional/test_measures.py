"""`poc calibrate`, `poc selfcheck` and `poc power` on a real model, as an operator runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import preloaded
from shared.config import PoCConfig, r_target_for
from shared.errors import ConfigError
from shared.settings import load_settings
from support import ROOT, clean_environment
from worker.cli.options import FRAUD
from worker.tools.calibration.selfcheck import Plan, check
from worker.tools.make_model import make_model

pytestmark = pytest.mark.functional

Poc = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model."""
    return make_model(tmp_path_factory.mktemp("measured") / "model")


@pytest.fixture
def poc(model: Path, tmp_path: Path) -> Poc:
    """Run `poc` with these arguments and the model, on no GPU."""
    env = clean_environment(
        POC_MODEL=str(model), POC_ENGINE="transformers", POC_DEVICE="cpu", PYTHONPATH=str(ROOT)
    )
    return lambda *args: preloaded.run(args, env=env, cwd=tmp_path)


def test_a_random_model_is_near_to_the_ideal(poc: Poc, tmp_path: Path) -> None:
    """Its r_target is that of theory, and the picture is drawn."""
    ran = poc(
        *("calibrate", "--valid-rate=0.2", "--blocks=4", "--nonces=32", "--seq-len=4"),
        *("--picture=p.svg", "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["r_target"] == pytest.approx(r_target_for(0.2, 1024), abs=0.015)
    assert said["ideal_r_target"] == r_target_for(0.2, 1024)
    assert said["profile"]["engine"] == "transformers"
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")


def test_a_validator_with_other_floats_calls_it_a_fraud(poc: Poc) -> None:
    """Another tile gives the same bits; bfloat16 has noise, and a margin is named that helps."""
    ran = poc(
        *("selfcheck", "--r-target=1.4", "--seq-len=4", "--sample=32", "--json"),
        *("--as=tile=4", "--as=dtype=bfloat16"),
    )
    assert ran.returncode == FRAUD, ran.stderr
    said = json.loads(ran.stdout)
    tile, floats = said["sides"]
    assert (tile["equal"], tile["probability_flagged"]) == (32, 0.0)
    assert floats["std_difference"] > 1e-5
    assert said["probability_flagged"] == floats["probability_flagged"] > 0.01
    assert 0 < said["safe_submit_margin"] < 0.01


def test_a_node_of_artifacts_is_compared_by_its_vectors(poc: Poc) -> None:
    """None lies too far off, which is told as at most 3 of the sample; nearer limits fail it."""
    asked = "selfcheck", "--scheme=artifact", "--seq-len=4", "--sample=64", "--json"
    ran = poc(*asked, "--as=tile=4", "--as=dtype=bfloat16")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    tile, floats = said["sides"]
    assert (tile["equal"], tile["changed_sides"], tile["mismatch"]) == (64, 0, 3 / 64)
    assert 0 < floats["largest_difference"] < 0.1
    assert said["flagged_from"] == 28
    ran = poc(*asked, "--as=dtype=bfloat16", "--dist-threshold=1e-6")
    assert ran.returncode == FRAUD, ran.stderr


def test_wrong_options_are_told_by_the_exit_status(poc: Poc) -> None:
    """Not as a node that would fail, which is 1."""
    ran = poc("selfcheck", "--r-target=1.4", "--as=speed=fast")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: --as speed=fast: ")
    ran = poc("selfcheck")
    assert ran.returncode == 2
    assert "lacks --r-target" in ran.stderr
    ran = poc("power", "--fraud-threshold=0")
    assert ran.returncode == 2
    assert "--fraud-threshold 0: must be above 0" in ran.stderr


def test_an_r_target_that_no_nonce_meets_is_told(model: Path) -> None:
    """Given no valid nonce, then there is nothing to be validated."""
    settings = load_settings({}, model=str(model), engine="transformers", device="cpu")
    config = PoCConfig(block_hash="b", block_height=0, public_key="k", r_target=0.5, seq_len=4)
    with pytest.raises(ConfigError, match=r"none of this model.s nonces is valid below 0\.5"):
        check(settings, Plan(config, sample=16))

"""Which versions of vLLM are supported."""

from __future__ import annotations

import pytest

from shared.errors import EngineError
from worker.engines.vllm import installed
from worker.engines.vllm.installed import check_version


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0+cpu", "0.33.1"])
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "distribution", lambda: ("vllm", version))
    assert check_version() == version


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0rc1", "1.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr(installed, "distribution", lambda: ("vllm", version))
    with pytest.raises(EngineError, match=rf"vLLM {version} is not supported.*'\.\[vllm\]'"):
        check_version()

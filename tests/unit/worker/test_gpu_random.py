"""The generator against golden vectors, and what must hold for any input."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import cpu_random, gpu_random

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden_vectors.json").read_text(encoding="utf-8")
)
#: How far floats may be from the golden ones: devices differ in log, sin and cos.
TOLERANCE = 2e-6

#: What rounds on a CPU compute with meets them as well.
either = pytest.mark.parametrize("module", [gpu_random, cpu_random], ids=lambda each: each.__name__)
uint32 = st.integers(0, 2**32 - 1)
nonce_lists = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)
names = st.text(max_size=12).filter(lambda text: text.isprintable())
examples = settings(deadline=None, max_examples=40)


def close(actual: torch.Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=TOLERANCE)


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes; numpy has no bfloat16, so bits travel as integers."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def logits_of(rows: int, vocab_size: int) -> torch.Tensor:
    """The logits that the golden distances were taken from."""
    i = torch.arange(vocab_size, dtype=torch.float64)
    return torch.stack(
        [torch.sin((b + 1) * 0.37 * i) + 0.5 * torch.cos(1.7 * i + b) for b in range(rows)]
    ).float()


def murmur3_plain(key: int, seed: int) -> int:
    """The hash in plain integers, as the design states it."""
    mask = 0xFFFFFFFF
    k = key * 0xCC9E2D51 & mask
    k = (k << 15 | k >> 17) & mask
    h = seed ^ (k * 0x1B873593 & mask)
    h = (h << 13 | h >> 19) & mask
    h = (h * 5 + 0xE6546B64) & mask
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


def unhash(value: int, seed: int) -> int:
    """The key that hashes to `value`: each step of the hash taken back, last one first."""
    size = 1 << 32
    h = value ^ value >> 16
    h = h * pow(0xC2B2AE35, -1, size) % size
    h ^= h >> 13 ^ h >> 26
    h = h * pow(0x85EBCA6B, -1, size) % size
    h ^= h >> 16
    h = (h - 0xE6546B64) * pow(5, -1, size) % size
    h = (h >> 13 | h << 19) % size
    k = (h ^ seed) * pow(0x1B873593, -1, size) % size
    k = (k >> 15 | k << 17) % size
    return k * pow(0xCC9E2D51, -1, size) % size


def seed_with_hash_zero() -> int:
    """The seed for which key 0 hashes to 0: all steps after the seed keep 0 but two."""
    size = 1 << 32
    h = -0xE6546B64 * pow(5, -1, size) % size
    return (h >> 13 | h << 19) % size


def normal_plain(seed: int, n: int) -> list[float]:
    """Box-Muller in Python's floats, as the design states it."""
    pairs = -(-n // 2)
    u = [murmur3_plain(i, seed) / 2**32 for i in range(2 * pairs)]
    radii = [math.sqrt(-2 * math.log(max(u1, 1e-10))) for u1 in u[:pairs]]
    turns = [2 * math.pi * u2 for u2 in u[pairs:]]
    cosines = [r * math.cos(t) for r, t in zip(radii, turns, strict=True)]
    sines = [r * math.sin(t) for r, t in zip(radii, turns, strict=True)]
    return [*cosines, *sines][:n]


class TestGolden:
    """Bit for bit what the design fixes."""

    @pytest.mark.parametrize("case", GOLDEN["murmur3"], ids=lambda case: f"seed{case['seed']}")
    def test_hashes(self, case: dict[str, Any]) -> None:
        hashes = gpu_random.murmur3_32(torch.tensor(case["keys"]), case["seed"])
        assert hashes.tolist() == case["hashes"]

    @pytest.mark.parametrize("text", GOLDEN["seeds"])
    def test_seeds(self, text: str) -> None:
        assert gpu_random.seed(text) == GOLDEN["seeds"][text]

    def test_uniforms_are_exact(self) -> None:
        row = gpu_random.uniform([GOLDEN["uniform"]["seed"]], 8)[0]
        assert row.tolist() == GOLDEN["uniform"]["first8"]

    @pytest.mark.parametrize("case", GOLDEN["normal"], ids=lambda case: f"n{case['n']}")
    def test_normals(self, case: dict[str, Any]) -> None:
        close(gpu_random.normal([case["seed"]], case["n"])[0], case["values"])

    @either
    @pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"v{case['vocab_size']}")
    def test_round(self, case: dict[str, Any], module: ModuleType) -> None:
        """Inputs, permutations, target and distances of whole rounds."""
        block, key, nonces = case["block_hash"], case["public_key"], case["nonces"]
        shape = case["hidden_size"], case["seq_len"], "cpu"

        inputs = module.generate_inputs(block, key, nonces, *shape, torch.float32)
        assert inputs.shape == (len(nonces), case["seq_len"], case["hidden_size"])
        close(inputs.flatten(1)[:, :8], case["inputs_first8"])
        close(inputs.flatten(1)[:, -4:], case["inputs_last4"])
        permutations = module.generate_permutations(block, key, nonces, case["vocab_size"], "cpu")
        assert permutations[:, :8].tolist() == case["permutation_first8"]
        assert [digest(row) for row in permutations.to(torch.int64)] == case[
            "permutation_sha256_int64_le"
        ]

        target = gpu_random.generate_target(block, case["vocab_size"], "cpu")
        assert target.dtype == torch.float32
        close(target[:8], case["target_first8"])
        logits = logits_of(len(nonces), case["vocab_size"])
        close(module.compute_distances(logits, permutations, target), case["distances"])

    @either
    @pytest.mark.parametrize(
        "case", GOLDEN["strong_inputs"], ids=lambda case: f"n{case['hidden_size']}"
    )
    def test_strong_inputs(self, case: dict[str, Any], module: ModuleType) -> None:
        block, key, nonces = case["block_hash"], case["public_key"], case["nonces"]
        texts = [f"{block}_{key}_nonce{nonce}" for nonce in nonces]
        assert [gpu_random.strong_seeds(text) for text in texts] == case["seeds"]
        inputs = module.generate_inputs(
            block,
            key,
            nonces,
            case["hidden_size"],
            case["seq_len"],
            "cpu",
            torch.float32,
            strong_rng=True,
        )
        close(inputs.flatten(1)[:, :8], case["first8"])
        close(inputs.flatten(1)[:, -4:], case["last4"])

    @pytest.mark.parametrize("strong_rng", [False, True])
    def test_bfloat16_inputs(self, strong_rng: bool) -> None:
        """The cast to the model's dtype comes last, so it is the rounded float32.

        The golden digests were taken on one CPU and need not be met by another, so values are
        held against the float32 ones.
        """
        arguments = "block", "key", [3, 4], 24, 5, "cpu"
        exact = gpu_random.generate_inputs(*arguments, torch.float32, strong_rng=strong_rng)
        cast = gpu_random.generate_inputs(*arguments, torch.bfloat16, strong_rng=strong_rng)
        assert torch.equal(cast, exact.to(torch.bfloat16))


class TestHash:
    """MurmurHash3 in int32 has the bits of the one in uint32."""

    @given(st.lists(uint32, min_size=1, max_size=50), uint32)
    @examples
    def test_equals_plain_integers(self, keys: list[int], seed: int) -> None:
        hashes = gpu_random.murmur3_32(torch.tensor(keys), seed)
        assert hashes.tolist() == [murmur3_plain(key, seed) for key in keys]

    @given(st.lists(uint32, min_size=1, max_size=50), uint32)
    @examples
    def test_every_hash_has_one_key(self, keys: list[int], seed: int) -> None:
        """The hash can be undone, so permutations have no ties."""
        hashes = gpu_random.murmur3_32(torch.tensor(keys), seed).tolist()
        assert [unhash(value, seed) for value in hashes] == keys

    def test_seeds_broadcast_and_keys_survive(self) -> None:
        keys = torch.arange(5, dtype=torch.int32)
        seeds = torch.tensor([[1], [2**32 - 1]])
        hashes = gpu_random.murmur3_32(keys, seeds)
        assert hashes.tolist() == [[murmur3_plain(k, s) for k in range(5)] for s in (1, 2**32 - 1)]
        assert keys.tolist() == [0, 1, 2, 3, 4]

    def test_the_least_hash_gives_a_finite_normal(self) -> None:
        """Hash 0 as u1 would be log(0); it is clamped."""
        seed = seed_with_hash_zero()
        assert gpu_random.uniform([seed], 1).item() == 0
        assert torch.isfinite(gpu_random.normal([seed], 2)).all()


class TestProperties:
    """For any block, key and nonces."""

    @given(names, nonce_lists, st.integers(1, 20), st.integers(1, 5), st.booleans())
    @examples
    def test_inputs_equal_plain_floats(
        self, block: str, nonces: list[int], dim: int, seq_len: int, strong_rng: bool
    ) -> None:
        """Every element, also of strong inputs whose last segments are short or empty."""
        inputs = gpu_random.generate_inputs(
            block, "k", nonces, dim, seq_len, "cpu", torch.float32, strong_rng=strong_rng
        )
        n = dim * seq_len
        for nonce, row in zip(nonces, inputs.flatten(1), strict=True):
            hashed = hashlib.sha256(f"{block}_k_nonce{nonce}".encode()).digest()
            words = [int.from_bytes(hashed[at : at + 4], "big") for at in range(0, 32, 4)]
            length = -(-n // 8)
            lengths = [max(0, min(length, n - at * length)) for at in range(8)]
            if not strong_rng:
                words, lengths = words[:1], [n]
            plain = [
                value
                for word, size in zip(words, lengths, strict=True)
                for value in normal_plain(word, size)
            ]
            # float32 angles cost a little against Python's floats.
            torch.testing.assert_close(row, torch.tensor(plain), rtol=1e-5, atol=1e-5)

    @given(names, names, nonce_lists, st.integers(1, 400))
    @examples
    def test_permutations_hold_every_index_once(
        self, block: str, key: str, nonces: list[int], vocab_size: int
    ) -> None:
        permutations = gpu_random.generate_permutations(block, key, nonces, vocab_size, "cpu")
        everything = torch.arange(vocab_size).expand(len(nonces), -1)
        assert torch.equal(permutations.sort(dim=1).values, everything)

    @given(names, nonce_lists)
    @examples
    def test_permutations_sort_the_hashes(self, key: str, nonces: list[int]) -> None:
        permutations = gpu_random.generate_permutations("b", key, nonces, 64, "cpu")
        for nonce, row in zip(nonces, permutations.tolist(), strict=True):
            seed = gpu_random.seed(f"b_{key}_nonce_{nonce}_permutations")
            assert row == sorted(range(64), key=lambda i: murmur3_plain(i, seed))

    @given(names, st.integers(1, 2000))
    @examples
    def test_target_has_norm_one(self, block: str, vocab_size: int) -> None:
        norm = gpu_random.generate_target(block, vocab_size, "cpu").norm().item()
        assert norm == pytest.approx(1.0, abs=1e-5)

    @given(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=12, max_size=12),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    )
    @examples
    def test_distances_lie_between_0_and_2(self, row: list[float], dtype: torch.dtype) -> None:
        logits = torch.tensor([row, row[::-1]]).to(dtype)
        permutations = gpu_random.generate_permutations("b", "k", [1, 2], 12, "cpu")
        target = gpu_random.generate_target("b", 12, "cpu")
        distances = gpu_random.compute_distances(logits, permutations, target)
        directed = torch.isfinite(logits).all(1) & (logits.float().norm(dim=1) > 0)
        assert torch.equal(~torch.isnan(distances), directed)
        assert ((distances[directed] >= 0) & (distances[directed] <= 2)).all()

    @given(nonce_lists, st.integers(1, 40), st.integers(1, 7), st.booleans())
    @examples
    def test_a_nonce_does_not_feel_its_batch(
        self, nonces: list[int], dim: int, seq_len: int, strong_rng: bool
    ) -> None:
        """Alone or among others: the same bits, for inputs, permutations and distances."""

        def compute(batch: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            inputs = gpu_random.generate_inputs(
                "b", "k", batch, dim, seq_len, "cpu", torch.float32, strong_rng=strong_rng
            )
            permutations = gpu_random.generate_permutations("b", "k", batch, dim, "cpu")
            target = gpu_random.generate_target("b", dim, "cpu")
            return (
                inputs,
                permutations,
                gpu_random.compute_distances(inputs[:, -1], permutations, target),
            )

        together = compute(nonces)
        for at, nonce in enumerate(nonces):
            for whole, alone in zip(together, compute([nonce]), strict=True):
                assert torch.equal(whole[at], alone[0])


class TestBlocks:
    """Where the work is cut changes nothing."""

    @pytest.mark.parametrize("budget", [1, 7, 64, 1000])
    def test_small_blocks_give_the_same_bits(
        self, budget: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compute() -> list[torch.Tensor]:
            inputs = [
                gpu_random.generate_inputs(
                    "b", "k", range(5), 9, 5, "cpu", torch.float32, strong_rng=strong
                )
                for strong in (False, True)
            ]
            permutations = gpu_random.generate_permutations("b", "k", range(5), 31, "cpu")
            target = gpu_random.generate_target("b", 31, "cpu")
            distances = gpu_random.compute_distances(logits_of(5, 31), permutations, target)
            return [*inputs, gpu_random.uniform([1, 2], 33), permutations, target, distances]

        expected = compute()
        monkeypatch.setitem(gpu_random._BLOCK_ELEMENTS, "cpu", budget)
        for wanted, got in zip(expected, compute(), strict=True):
            assert torch.equal(got, wanted)

    @pytest.mark.parametrize("strong_rng", [False, True])
    def test_an_empty_batch_is_empty(self, strong_rng: bool) -> None:
        inputs = gpu_random.generate_inputs(
            "b", "k", [], 8, 4, "cpu", torch.float32, strong_rng=strong_rng
        )
        permutations = gpu_random.generate_permutations("b", "k", [], 16, "cpu")
        target = gpu_random.generate_target("b", 16, "cpu")
        assert inputs.shape == (0, 4, 8)
        assert gpu_random.compute_distances(torch.zeros(0, 16), permutations, target).shape == (0,)


class TestBrokenLogits:
    """Only the row that has no direction has no distance."""

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
    def test_one_bad_row_is_nan_alone(self, bad: float) -> None:
        logits = logits_of(3, 16)
        permutations = gpu_random.generate_permutations("b", "k", range(3), 16, "cpu")
        target = gpu_random.generate_target("b", 16, "cpu")
        healthy = gpu_random.compute_distances(logits, permutations, target)
        logits[1, 4:6] = bad  # twice 3e38 squared is beyond float32
        distances = gpu_random.compute_distances(logits, permutations, target)
        assert torch.isnan(distances).tolist() == [False, True, False]
        assert torch.equal(distances[::2], healthy[::2])

    def test_the_target_itself_is_at_0_and_its_opposite_at_2(self) -> None:
        target = gpu_random.generate_target("b", 16, "cpu")
        permutations = torch.arange(16).expand(2, -1)
        distances = gpu_random.compute_distances(
            torch.stack([target, -target]), permutations, target
        )
        assert distances.tolist() == pytest.approx([0.0, 2.0], abs=1e-6)

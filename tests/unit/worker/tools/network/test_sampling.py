"""The sample is the one that the network's controller draws."""

from __future__ import annotations

from worker.tools.network.sampling import GoRandom, sample

OF = {"validator": "02AB", "block_hash": "B10C", "height": 7, "model": "net/model"}


def test_numbers_are_those_of_go() -> None:
    """As its documentation and countless programs have printed them for seed 1."""
    go = GoRandom(1)
    first = [go.int63() for _ in range(4)]
    assert first == [
        5577006791947779410,
        8674665223082153551,
        6129484611666145821,
        4037200794235010051,
    ]
    go = GoRandom(1)
    assert [go.below(100) for _ in range(10)] == [81, 87, 47, 59, 81, 18, 25, 40, 56, 0]


def test_a_seed_counts_modulo_a_prime() -> None:
    """Negative ones, too: half of all hashes give one."""
    below = 2**31 - 1
    assert GoRandom(-5).int63() == GoRandom(below - 5).int63()
    assert GoRandom(0).int63() == GoRandom(below).int63() != GoRandom(1).int63()


def test_a_sample_repeats_nothing() -> None:
    drawn = sample(1000, 200, **OF)
    assert len(drawn) == len(set(drawn)) == 200
    assert set(drawn) < set(range(1000))


def test_each_validator_and_block_has_another_sample() -> None:
    drawn = sample(1000, 200, **OF)
    assert drawn == sample(1000, 200, **OF)
    for name, other in {"validator": "02AC", "block_hash": "B", "height": 8, "model": "m"}.items():
        assert drawn != sample(1000, 200, **OF | {name: other})


def test_of_few_artifacts_all_are_the_sample() -> None:
    assert sample(200, 200, **OF) == list(range(200))
    assert sample(3, 200, **OF) == [0, 1, 2]

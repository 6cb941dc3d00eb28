"""When a forward is recorded. How it is, only a GPU can show: `tests/gpu/test_vllm_engine.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.engines.vllm import recording
from worker.engines.vllm.recording import ANOTHER_AFTER, FIRST_AFTER, Forward, Recorder

ROUND, OTHER = torch.zeros(4, 8, 2), torch.zeros(4, 6, 2)


class Log:
    """What the device did: the lengths that were recorded, and each forward's way."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.ways: list[str] = []
        self.breaks = False

    def forward_of(self, shape: torch.Size) -> Forward:
        def plain(inputs: Tensor) -> Tensor:
            assert inputs.shape == shape
            self.ways.append("plain")
            return inputs

        return plain


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()

    class FakeRecording:
        def __init__(self, forward: Forward, inputs: Tensor, pool: object) -> None:
            if log.breaks:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.shape = inputs.shape
            log.recorded.append(inputs.shape[1])

        def __call__(self, inputs: Tensor) -> Tensor:
            assert inputs.shape == self.shape
            log.ways.append("replayed")
            return inputs

    monkeypatch.setattr(recording, "Recording", FakeRecording)
    return log


@pytest.fixture
def forward(log: Log) -> Recorder:
    return Recorder(log.forward_of, records=True)


def test_a_shape_that_keeps_coming_is_recorded(forward: Recorder, log: Log) -> None:
    """And replayed from then on."""
    for _ in range(FIRST_AFTER + 2):
        assert forward(ROUND) is ROUND
    assert log.ways == ["plain"] * (FIRST_AFTER - 1) + ["replayed"] * 3
    assert forward.recorded == ROUND.shape


def test_where_nothing_is_recorded(log: Log) -> None:
    forward = Recorder(log.forward_of, records=False)
    for _ in range(2 * ANOTHER_AFTER):
        forward(ROUND)
    assert set(log.ways) == {"plain"}
    assert forward.recorded is None


@pytest.mark.parametrize("tiles", [1, FIRST_AFTER + 1])
def test_a_shape_in_between_replaces_nothing(forward: Recorder, log: Log, tiles: int) -> None:
    """Given a functional check now and then, or validations of some tiles between all batches."""
    for _ in range(20):
        for _ in range(FIRST_AFTER + 1):
            forward(ROUND)
        for _ in range(tiles):
            forward(OTHER)
    assert log.recorded == [ROUND.shape[1]]
    assert log.ways.count("plain") == FIRST_AFTER - 1 + 20 * tiles


def test_another_shape_for_good_replaces_the_first(forward: Recorder, log: Log) -> None:
    """Given the next round, of another length."""
    for inputs in (ROUND, OTHER):
        for _ in range(ANOTHER_AFTER):
            forward(inputs)
    assert log.recorded == [ROUND.shape[1], OTHER.shape[1]]
    assert forward.recorded == OTHER.shape


def test_what_cannot_be_recorded_stays_plain(
    forward: Recorder, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried once, said once, and costs no result."""
    log.breaks = True
    for _ in range(2 * ANOTHER_AFTER):
        assert forward(ROUND) is ROUND
    assert log.ways == ["plain"] * 2 * ANOTHER_AFTER
    (record,) = caplog.records
    assert "not permitted when stream is capturing" in record.getMessage()


def test_what_was_forgotten_is_recorded_again(forward: Recorder, log: Log) -> None:
    """Given that its memory was needed, not at once."""
    for _ in range(FIRST_AFTER):
        forward(ROUND)
    forward.forget()
    assert forward.recorded is None
    for _ in range(FIRST_AFTER):
        forward(ROUND)
    assert log.ways == (["plain"] * (FIRST_AFTER - 1) + ["replayed"]) * 2

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
        #: Those of the plain ones.
        self.schemes: list[str] = []
        self.breaks = False

    def forward_of(self, scheme: str, shape: torch.Size) -> Forward:
        def plain(inputs: Tensor) -> Tensor:
            assert inputs.shape == shape
            self.ways.append("plain")
            self.schemes.append(scheme)
            return inputs

        return plain


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()

    class FakeRecording:
        def __init__(self, forward: Forward, inputs: Tensor) -> None:
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
def recorder(log: Log) -> Recorder:
    return Recorder(log.forward_of, records=True)


def test_a_shape_that_keeps_coming_is_recorded(recorder: Recorder, log: Log) -> None:
    """And replayed from then on."""
    for _ in range(FIRST_AFTER + 2):
        assert recorder.of("s")(ROUND) is ROUND
    assert log.ways == ["plain"] * (FIRST_AFTER - 1) + ["replayed"] * 3
    assert recorder.recorded == ("s", ROUND.shape)


def test_where_nothing_is_recorded(log: Log) -> None:
    recorder = Recorder(log.forward_of, records=False)
    for _ in range(2 * ANOTHER_AFTER):
        recorder.of("s")(ROUND)
    assert set(log.ways) == {"plain"}
    assert recorder.recorded is None


@pytest.mark.parametrize("tiles", [1, FIRST_AFTER + 1])
def test_a_shape_in_between_replaces_nothing(recorder: Recorder, log: Log, tiles: int) -> None:
    """Given a functional check now and then, or validations of some tiles between all batches."""
    for _ in range(20):
        for _ in range(FIRST_AFTER + 1):
            recorder.of("s")(ROUND)
        for _ in range(tiles):
            recorder.of("s")(OTHER)
    assert log.recorded == [ROUND.shape[1]]
    assert log.ways.count("plain") == FIRST_AFTER - 1 + 20 * tiles


def test_another_shape_for_good_replaces_the_first(recorder: Recorder, log: Log) -> None:
    """Given the next round, of another length."""
    for inputs in (ROUND, OTHER):
        for _ in range(ANOTHER_AFTER):
            recorder.of("s")(inputs)
    assert log.recorded == [ROUND.shape[1], OTHER.shape[1]]
    assert recorder.recorded == ("s", OTHER.shape)


def test_what_cannot_be_recorded_stays_plain(
    recorder: Recorder, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried once, said once, and costs no result."""
    log.breaks = True
    for _ in range(2 * ANOTHER_AFTER):
        assert recorder.of("s")(ROUND) is ROUND
    assert log.ways == ["plain"] * 2 * ANOTHER_AFTER
    (record,) = caplog.records
    assert "not permitted when stream is capturing" in record.getMessage()


def test_what_was_forgotten_is_recorded_again(recorder: Recorder, log: Log) -> None:
    """Given that its memory was needed, not at once."""
    for _ in range(FIRST_AFTER):
        recorder.of("s")(ROUND)
    recorder.forget()
    assert recorder.recorded is None
    for _ in range(FIRST_AFTER):
        recorder.of("s")(ROUND)
    assert log.ways == (["plain"] * (FIRST_AFTER - 1) + ["replayed"]) * 2


def test_another_scheme_is_another_forward(recorder: Recorder, log: Log) -> None:
    """Given inputs of one shape, what was recorded for one scheme is not replayed for another."""
    for _ in range(FIRST_AFTER):
        recorder.of("s")(ROUND)
    log.ways.clear()
    for _ in range(3):
        recorder.of("other")(ROUND)
        recorder.of("s")(ROUND)
    assert log.ways == ["plain", "replayed"] * 3
    assert set(log.schemes[FIRST_AFTER - 1 :]) == {"other"}
    recorder.plain("s")(ROUND)
    assert (log.ways[-1], log.schemes[-1]) == ("plain", "s")
    for _ in range(ANOTHER_AFTER):
        recorder.of("other")(ROUND)
    assert recorder.recorded == ("other", ROUND.shape)

"""The functional check tells a device that is well from one that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine, fake_distance
from shared.errors import EngineDied, EngineError, Quarantined
from shared.settings import load_settings
from shared.status import Commit
from shared.store import Reference
from support import Clock
from worker.engines import Job
from worker.node import functional_check
from worker.node.functional_check import BLOCK_HASH, KEPT, NONCES, FunctionalCheck

DISTANCES = tuple(fake_distance(BLOCK_HASH, BLOCK_HASH, nonce) for nonce in NONCES)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(functional_check, "time", clock)
    return clock


@pytest.fixture
def engine(new_engine: Callable[..., FakeEngine], fault: Path) -> FakeEngine:
    return new_engine(fault=fault)


def checking(engine: FakeEngine, **settings: Any) -> FunctionalCheck:
    return FunctionalCheck(engine, load_settings({}, **settings))


def begun(engine: FakeEngine, **settings: Any) -> FunctionalCheck:
    check = checking(engine, **settings)
    check.begin()
    return check


def commit(start: int, count: int = 4, round_id: str = "r", at: float = 5) -> Commit:
    return Commit(
        round_id=round_id,
        start=start,
        count=count,
        first_nonce=start,
        last_nonce=start + count - 1,
        at=at,
    )


class TestBegin:
    """The first answer, which all later ones are held against."""

    def test_it_is_computed_twice(
        self, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And logged as the setting takes it."""
        caplog.set_level("INFO")
        check = begun(engine)
        assert check.distances == DISTANCES
        expected = Job(BLOCK_HASH, BLOCK_HASH, tuple(range(8)), 64, whole_tiles=True)
        assert engine.checks == [expected] * 2
        assert f"functional check passed: POC_MODEL_DISTANCES={list(DISTANCES)}" in caplog.text

    def test_a_short_model_is_checked_in_its_length(
        self, new_engine: Callable[..., FakeEngine]
    ) -> None:
        engine = new_engine(max_seq_len=16)
        begun(engine)
        assert {job.seq_len for job in engine.checks} == {16}

    def test_two_answers(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Given a device that does not repeat itself, then it is out before it began."""
        real, answers = engine._distances, iter([0.0, 1e-12])

        def distances(job: Job) -> list[float]:
            noise = next(answers)
            return [d + noise for d in real(job)]

        monkeypatch.setattr(engine, "_distances", distances)
        with pytest.raises(Quarantined, match=r"a moment before it was 0\.59.*; 8 of 8 differ: "):
            checking(engine).begin()

    def test_no_numbers(self, engine: FakeEngine, fault: Path) -> None:
        """Repeated or not."""
        fault.write_text("nan")
        with pytest.raises(Quarantined, match=r"no finite distances, but \[nan, "):
            checking(engine).begin()

    def test_a_device_that_computes_nothing(self, engine: FakeEngine, fault: Path) -> None:
        """The engine says why; there is nothing wrong with its numbers."""
        fault.write_text("fail")
        with pytest.raises(EngineError, match=r"^the fake device is broken$") as failed:
            checking(engine).begin()
        assert not isinstance(failed.value, Quarantined)


class TestOthers:
    """The same model gives the same distances, but for noise."""

    def test_the_first_with_a_model_agrees_with_itself(self, engine: FakeEngine) -> None:
        check = begun(engine)
        check.agree_with(None)
        check.agree_with(Reference(check.distances, "w0"))

    @pytest.mark.parametrize(("vocab_size", "noise"), [(151_936, 5e-4), (1024, 6e-3)])
    def test_noise_is_allowed_for_by_the_size_of_the_vocabulary(
        self, engine: FakeEngine, vocab_size: int, noise: float
    ) -> None:
        """0.2/sqrt(V): what engines differ by is a fifteenth of it, what models do five times."""
        engine.info = replace(engine.info, vocab_size=vocab_size)
        check = begun(engine)
        check.agree_with(Reference(tuple(d + noise for d in DISTANCES), "w0"))
        with pytest.raises(Quarantined, match="8 of 8 differ by more than"):
            check.agree_with(Reference(tuple(d + 1.1 * noise for d in DISTANCES), "w0"))

    def test_one_distance_is_enough(self, engine: FakeEngine) -> None:
        """Both are shown, with whose the other is and what to do if that one is wrong."""
        check = begun(engine)
        theirs = (*DISTANCES[:7], 1.9)
        with pytest.raises(Quarantined) as out:
            check.agree_with(Reference(theirs, "w0"))
        assert str(out.value) == (
            f"functional check: the distance of nonce 7 is {DISTANCES[7]!r}, w0, the first worker "
            "with this model, gave 1.9; 1 of 8 differ by more than 0.2: this device gives wrong "
            "numbers; if the other is the wrong one, set POC_MODEL_DISTANCES to what a healthy "
            "worker logs"
        )

    def test_what_is_pinned_counts_more(self, engine: FakeEngine) -> None:
        """Given a first worker that was wrong."""
        check = begun(engine, model_distances=str(list(DISTANCES)))
        check.agree_with(Reference((1.9,) * 8, "w0"))

    def test_what_is_pinned_holds_from_the_start(self, engine: FakeEngine) -> None:
        pinned = str([1.9, *DISTANCES[1:]])
        with pytest.raises(Quarantined, match=r"POC_MODEL_DISTANCES has 1\.9; 1 of 8 differ"):
            checking(engine, model_distances=pinned).begin()


class TestNowAndThen:
    """Later answers are the first one again."""

    def test_when(self, engine: FakeEngine, clock: Clock) -> None:
        """POC_CHECK_EVERY_S after the one before."""
        check = begun(engine, check_every_s=60)
        assert not check.is_due
        clock.now += 59.9
        assert not check.is_due
        clock.now += 0.1
        assert check.is_due
        check.run()
        assert not check.is_due
        assert check.passed_at == clock.time()

    @pytest.mark.parametrize("wrong", ["wrong", "slightly wrong", "nan"])
    def test_wrong_numbers(
        self, wrong: str, engine: FakeEngine, fault: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Any bit counts; the log says at once what is in doubt."""
        check = begun(engine)
        check.committed(commit(0))
        fault.write_text(wrong)
        with pytest.raises(Quarantined, match=r"at its start it was 0\.59.*8 of 8 differ: this"):
            check.run()
        (record,) = caplog.records
        assert record.levelname == "CRITICAL"
        assert record.getMessage().endswith(
            "; in doubt: 4 nonces were committed since the check last passed, 0 s ago; "
            "the newest: nonces 0 to 3 (4) of round r"
        )

    def test_a_failure_is_for_good(
        self, engine: FakeEngine, fault: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Given a device that is right again, then it is not asked; and it is said once."""
        check = begun(engine)
        fault.write_text("wrong")
        for _ in range(2):
            with pytest.raises(Quarantined):
                check.run()
            fault.unlink(missing_ok=True)
            assert check.is_due
        assert len(engine.checks) == 3
        assert len(caplog.records) == 1

    def test_an_engine_that_promises_less(self, engine: FakeEngine, fault: Path) -> None:
        """Noise is allowed then, wrong numbers are not."""
        engine.info = replace(engine.info, exact=False)
        check = begun(engine)
        fault.write_text("slightly wrong")
        check.run()
        fault.write_text("wrong")
        with pytest.raises(Quarantined, match="differ by more than"):
            check.run()

    def test_a_device_that_computes_nothing_any_more(self, engine: FakeEngine, fault: Path) -> None:
        """It could at its start: another process is to try."""
        check = begun(engine)
        fault.write_text("fail")
        with pytest.raises(EngineDied, match="not even the functional check can be computed: the"):
            check.run()
        assert check.failed is None

    def test_an_engine_that_is_gone(self, engine: FakeEngine, fault: Path) -> None:
        """Says so itself."""
        check = begun(engine)
        fault.write_text("die")
        with pytest.raises(EngineDied, match=r"^the fake engine was asked to die$"):
            check.run()


class TestDoubt:
    """What was committed since the last check that passed."""

    def test_a_check_that_passes_clears_it(self, engine: FakeEngine) -> None:
        check = begun(engine)
        check.committed(commit(0))
        check.run()
        assert (check.in_doubt, list(check.commits)) == (0, [])

    def test_consecutive_batches_are_one(self, engine: FakeEngine) -> None:
        """With the time of the last; of another round, or after a gap, they are not."""
        check = begun(engine)
        check.committed(commit(0, at=5))
        check.committed(commit(4, at=6))
        check.committed(commit(12))
        check.committed(commit(16, round_id="other"))
        assert list(check.commits) == [commit(0, 8, at=6), commit(12), commit(16, round_id="other")]
        assert check.in_doubt == 16

    def test_the_newest_are_kept_and_all_are_counted(self, engine: FakeEngine) -> None:
        """A list that grows without end would be no help."""
        check = begun(engine)
        for number in range(KEPT + 20):
            check.committed(commit(8 * number))
        assert len(check.commits) == KEPT
        assert check.commits[-1] == commit(8 * (KEPT + 19))
        assert check.in_doubt == 4 * (KEPT + 20)

    def test_nothing_in_doubt_is_said_as_well(
        self, engine: FakeEngine, fault: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        check = begun(engine)
        fault.write_text("wrong")
        with pytest.raises(Quarantined):
            check.run()
        assert "in doubt: nothing was committed since the check last passed, 0 s ago" in caplog.text

    def test_validations_are_named(
        self, engine: FakeEngine, fault: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Their verdicts may have to be asked for again."""
        check = begun(engine)
        check.committed(commit(0).model_copy(update={"round_id": "", "validation": "v"}))
        fault.write_text("wrong")
        with pytest.raises(Quarantined):
            check.run()
        assert "nonces 0 to 3 (4) of validation v" in caplog.text

"""Jobs of the vLLM engine: limits, trouble, and what becomes of each of them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from driver import Driver, faulty, job
from small import settings_of

from shared.errors import EngineDied, EngineError
from worker.engines import JobCancelled
from worker.engines.vllm.engine import VllmEngine
from worker.engines.vllm.memory import reserve_bytes
from worker.tools.make_model import make_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


def test_the_first_batch_of_a_scheme_that_it_was_not_made_ready_for(driver: Driver) -> None:
    """Its forward is compiled and checked then; the batch is as right as those after it."""
    asked = job(*range(5), scheme="artifact", parameters={"k_dim": 12})
    first = driver.engine.submit(asked).result()
    assert None not in first
    assert driver.engine.submit(asked).result() == first


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_a_scheme_without_a_forward(out_of_memory: bool, driver: Driver) -> None:
    """The engine says so from then on, and makes no second try but for want of memory."""
    driver.call("poc_make_nothing", "whole", out_of_memory)
    for _ in range(2):
        with pytest.raises(EngineError, match="the scheme artifact can't be computed"):
            driver.engine.submit(job(1, scheme="artifact", parameters={"k_dim": 12})).result()
    assert driver.call("poc_tries") == (2 if out_of_memory else 1)
    assert list(driver.engine.info.without) == ([] if out_of_memory else ["artifact"])
    assert driver.distances(1)[0] > 0


class TestTiles:
    """Every forward has the shape that the profile says."""

    def test_work_is_cut_and_filled_up(self, driver: Driver) -> None:
        """Nine nonces in tiles of four."""
        driver.call("poc_shapes")
        assert len(driver.distances(*range(9))) == 9
        assert driver.distances() == []
        assert driver.call("poc_shapes") == [[4, 40, 64]] * 3
        assert driver.engine.info.profile["tile"] == "4"

    def test_a_forward_has_no_more_tokens_than_vllm_measured_memory_for(
        self, checkpoint: Callable[[str], Path]
    ) -> None:
        """A tile of 8 with 128 tokens: three sequences of 40, one of 128, none longer."""
        options = {"max_num_batched_tokens": 128, "max_num_seqs": 16}
        settings = settings_of(checkpoint("qwen3"), options, max_model_len=256, tile="auto")
        engine = faulty(settings)
        try:
            driver = Driver(engine)
            driver.call("poc_shapes")
            driver.distances(*range(4))
            driver.distances(*range(2), seq_len=128)
            assert driver.call("poc_shapes") == [[3, 40, 64]] * 2 + [[1, 128, 64]] * 2
            with pytest.raises(EngineError, match=r"seq_len=129: .* max_num_batched_tokens"):
                engine.submit(job(1, seq_len=129))
        finally:
            engine.close()

    def test_a_tile_that_was_asked_for_is_not_cut_in_silence(
        self, load: Callable[..., VllmEngine], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Said once of each length: 1,024 tokens are three sequences of 257."""
        model = make_model(tmp_path / "model", head_dim=32, vocab_size=160, max_seq_len=512)
        options = {"max_num_batched_tokens": 1024, "max_num_seqs": 16}
        engine = load(model, options, max_model_len=512)
        with caplog.at_level("WARNING"):
            for seq_len in (257, 256, 257):
                engine.submit(job(1, seq_len=seq_len)).result()
        (said,) = [each for each in caplog.messages if each.startswith("POC_TILE=4")]
        assert "sequences of 257 go 3 at a time, in 1024 tokens" in said
        assert "max_num_batched_tokens to 1028" in said

    @pytest.mark.parametrize("seq_len", [0, 129])
    def test_a_sequence_that_the_model_has_no_positions_for(
        self, seq_len: int, driver: Driver
    ) -> None:
        """Unchecked it would give numbers that mean nothing."""
        with pytest.raises(EngineError, match=f"seq_len={seq_len}: .* 1 to 128 positions"):
            driver.engine.submit(job(1, seq_len=seq_len))

    def test_the_scratch_is_within_what_was_reserved(
        self, driver: Driver, checkpoint: Callable[[str], Path]
    ) -> None:
        """What is taken off vLLM's share for it all has room for the pages, and is bounded."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(checkpoint("qwen3"))
        reserve = reserve_bytes(config, tile=4, tokens=8192, ranks=1, width=4)
        scratch = driver.call("poc_prepare", 4, 8192)["scratch_bytes"]
        assert scratch < reserve < 512 << 20

    def test_a_model_is_gone_before_the_next_takes_its_memory(self, driver: Driver) -> None:
        """At once, and not with the next collection: what it recorded fills a large part of it."""
        driver.distances(1)
        assert not driver.call("poc_outlives")
        assert driver.distances(1)[0] > 0


class TestTrouble:
    """What goes wrong concerns its own job, and says what to do."""

    @pytest.mark.parametrize("seq_len", [5, 40, 128])
    def test_what_an_earlier_nonce_left_reaches_no_other(
        self, seq_len: int, driver: Driver
    ) -> None:
        """Given NaN in all scratch pages, also behind the end of a last block."""
        expected = driver.distances(*range(6), seq_len=seq_len)
        driver.call("poc_poison_scratch")
        assert driver.distances(*range(6), seq_len=seq_len) == expected

    def test_out_of_memory_halves_the_tile_once(self, driver: Driver) -> None:
        """Given no memory for one forward, its halves give the same distances."""
        expected = driver.distances(*range(6))
        driver.call("poc_run_out_of_memory", 1)
        assert driver.distances(*range(6)) == pytest.approx(expected, abs=1e-6)

    def test_a_job_of_whole_tiles_is_not_halved(self, driver: Driver) -> None:
        """A functional check would call other bits a device that is wrong."""
        driver.call("poc_run_out_of_memory", 1)
        with pytest.raises(EngineError, match=r"can't compute the batch: .*9 GiB"):
            driver.distances(*range(6), whole_tiles=True)

    def test_out_of_memory_twice_fails_the_job_and_no_other(self, driver: Driver) -> None:
        """The manager gives its claim back; the engine goes on."""
        expected = driver.distances(1)
        driver.call("poc_run_out_of_memory", 2)
        with pytest.raises(EngineError, match=r"can't compute the batch: .*9 GiB"):
            driver.distances(1)
        assert driver.distances(1) == expected

    def test_a_job_that_fails_does_not_end_the_engine(self, driver: Driver) -> None:
        """The reason reaches whoever asked."""
        driver.call("poc_fail", "loose wire")
        with pytest.raises(EngineError, match=r"can't compute the batch: .*loose wire"):
            driver.distances(1)
        driver.call("poc_mend")
        assert driver.distances(1)[0] > 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_logits_that_are_not_finite_hurt_their_nonce_only(
        self, bad: float, driver: Driver
    ) -> None:
        """NaN is what the manager counts as failed."""
        healthy = driver.distances(*range(4))
        driver.call("poc_poison", 2, bad)
        distances = driver.distances(*range(4))
        assert distances[2] is None
        assert distances[:2] + distances[3:] == healthy[:2] + healthy[3:]


class TestQueue:
    """One tile computes, jobs wait behind it."""

    def test_a_job_that_is_not_begun_can_be_cancelled(self, driver: Driver) -> None:
        """What the device has can't."""
        driver.call("poc_dawdle", 1.0)
        running, waiting = (driver.engine.submit(job(*range(4))) for _ in range(2))
        time.sleep(0.3)
        assert not running.cancel()
        assert waiting.cancel()
        assert len(running.result()) == 4
        with pytest.raises(JobCancelled):
            waiting.result()

    def test_busy_seconds_grow_with_work_only(self, driver: Driver) -> None:
        """By the device's clock, so waiting doesn't count."""
        before = driver.engine.busy_seconds
        driver.call("poc_dawdle", 0.2)
        driver.distances(1)
        after = driver.engine.busy_seconds
        assert 0.2 < after - before < 2
        time.sleep(0.1)
        assert driver.engine.busy_seconds == after

    def test_close_ends_the_running_job_and_the_queued_ones(
        self, checkpoint: Callable[[str], Path]
    ) -> None:
        """At once: the processes that compute are ended."""
        engine = faulty(settings_of(checkpoint("qwen3")))
        Driver(engine).call("poc_dawdle", 60.0)
        running, waiting = (engine.submit(job(*range(4))) for _ in range(2))
        time.sleep(0.3)
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < 30
        with pytest.raises(EngineError, match="was closed while it computed"):
            running.result()
        with pytest.raises(JobCancelled):
            waiting.result()
        with pytest.raises(EngineError, match="the engine is closed"):
            engine.submit(job(3))
        engine.close()  # twice is once

    def test_a_process_that_dies_ends_the_engine_for_good(
        self, checkpoint: Callable[[str], Path]
    ) -> None:
        """Nobody waits for ever: running, waiting and later jobs all learn of it."""
        engine = faulty(settings_of(checkpoint("qwen3")))
        try:
            driver = Driver(engine)
            driver.call("poc_dawdle", 2.0)
            running, waiting = engine.submit(job(1)), engine.submit(job(2))
            # Our own call may also end with the loop that it was put into.
            with pytest.raises((EngineDied, CancelledError)):
                driver.call("poc_kill")
            for pending in (running, waiting):
                with contextlib.suppress(EngineDied):  # one may have been done before
                    assert len(pending.result()) == 1
            with pytest.raises(EngineDied, match="start the worker again"):
                engine.submit(job(3)).result()
        finally:
            engine.close()

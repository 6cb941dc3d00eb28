"""Forwards as CUDA graphs: one launch instead of some hundred, and no device waits for a host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.engines.checkpoint import first_line
from worker.engines.tile import Forward

log = logging.getLogger("vllm.poc")  # vLLM shows what is below its own name

#: Forwards of one shape in a row until that shape is recorded: when none is, and when another one
#: is. Recording takes as long as some forwards, so a validation of other lengths in between, or
#: the functional check, must not replace the round's.
FIRST_AFTER, ANOTHER_AFTER = 3, 32


class Recorder:
    """A forward that is recorded once its inputs keep coming in one shape.

    `forward_of` makes the plain forward of a shape. What that holds must stay as it is: a recording
    points at it.
    """

    def __init__(
        self,
        forward_of: Callable[[torch.Size], Forward],
        *,
        records: bool,
        pool: Callable[[], Any] | None = None,
    ) -> None:
        """`pool` gives the memory that recordings share of which one at a time is replayed."""
        self._forward_of = forward_of
        self._pool = pool
        #: Whether anything is recorded. Not any more after a shape could not be.
        self.records = records
        self._recording: Recording | None = None
        self._shape, self._in_a_row = torch.Size(), 0

    def __call__(self, inputs: Tensor) -> Tensor | None:
        """What the forward gives for `inputs`, until the next call."""
        recording = self._recording_of(inputs)
        return self.plain(inputs) if recording is None else recording(inputs)

    def plain(self, inputs: Tensor) -> Tensor | None:
        """As a call, but never by a recording."""
        return self._forward_of(inputs.shape)(inputs)

    @property
    def recorded(self) -> torch.Size | None:
        """The shape that is recorded."""
        return None if self._recording is None else self._recording.shape

    def forget(self) -> None:
        """Give the memory of what is recorded back; it may be recorded again."""
        self._recording = None
        self._in_a_row = 0
        if torch.cuda.is_available():  # a graph's memory is its own until then
            torch.cuda.empty_cache()

    def _recording_of(self, inputs: Tensor) -> Recording | None:
        """What is recorded of this shape, once it has come often enough."""
        self._in_a_row = self._in_a_row + 1 if inputs.shape == self._shape else 1
        self._shape = inputs.shape
        if self.recorded == inputs.shape:
            return self._recording
        enough = FIRST_AFTER if self._recording is None else ANOTHER_AFTER
        if not self.records or self._in_a_row < enough:
            return None
        if self._recording:
            self.forget()  # its memory, before the next takes its own
        self._recording = self._record(inputs)
        return self._recording

    def _record(self, inputs: Tensor) -> Recording | None:
        try:
            return Recording(self._forward_of(inputs.shape), inputs, self._pool and self._pool())
        except Exception as error:  # noqa: BLE001 - memory, or any of a hundred kernels
            reason = first_line(error)
        # Out here, since the exception's traceback would keep what was recorded alive.
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)  # raises if the device is lost
            torch.cuda.empty_cache()
        log.warning(
            "forwards are not recorded until the worker starts again, which is slower: %s", reason
        )
        self.records = False
        return None


class Recording:
    """A forward that was recorded as a CUDA graph, to be replayed with other inputs.

    A replay runs the very kernels of the plain forward, and is checked once to give its bits.
    """

    def __init__(self, forward: Forward, inputs: Tensor, pool: Any = None) -> None:
        self.shape = inputs.shape
        self._forward = forward  # keeps what the graph points at
        self._inputs = inputs.clone()
        streams: Any = torch.cuda.Stream  # without types
        stream = streams(inputs.device)
        stream.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # what is tuned or allocated at the first call must not be recorded
                expected = forward(inputs.clone())
        torch.cuda.current_stream(inputs.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self._output = forward(self._inputs)
        for _ in range(2):
            replayed = self(inputs)
            # As bits: NaN is not equal to itself.
            if (
                replayed is None
                or expected is None
                or not torch.equal(replayed.view(torch.int16), expected.view(torch.int16))
            ):
                raise RuntimeError("the recorded forward gives other numbers than the plain one")

    def __call__(self, inputs: Tensor) -> Tensor | None:
        """What the forward gives for `inputs`, until the next call."""
        self._inputs.copy_(inputs)
        self._graph.replay()
        return self._output

"""One trace through real processes: from a command's message to the callback's request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis

from raw import raw_message
from receiver import Receiver
from shared import tracing
from shared.client import PoCClient
from shared.config import PoCConfig
from shared.settings import Settings
from support import wait_until

pytestmark = pytest.mark.functional

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def config(receiver: Receiver) -> PoCConfig:
    return PoCConfig(
        block_hash="b", block_height=1, public_key="k", r_target=2.0, callback_url=receiver.url
    )


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, as a collector does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        #: (resource, span) of each that came.
        self.spans: list[tuple[dict[str, str], Any]] = []

    def named(self, name: str, trace_id: bytes) -> list[Any]:
        """The spans of that name in that trace."""
        return [s for _, s in list(self.spans) if s.name == name and s.trace_id == trace_id]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {each.key: each.value.string_value for each in of.resource.attributes}
            for scope in of.scope_spans:
                self.server.spans += [(resource, span) for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_trace_from_the_client_to_the_receiver(
    start_worker: Any,
    client: PoCClient,
    collector: Collector,
    receiver: Receiver,
    config: PoCConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """send, process, batch, commit, POST: each is the parent of the next."""
    traced = pytest.importorskip("traced")
    tracer, sent = traced.tracer_and_spans()
    monkeypatch.setattr(tracing, "_tracer", tracer)
    start_worker(
        "w0",
        seconds=0.05,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_address[1]}",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    client.generate(config, round_id="r1")
    wait_until(lambda: receiver.requests, description="a callback")
    client.stop()
    send = sent()["send poc.generate"].context
    trace = send.trace_id.to_bytes(16, "big")
    _, headers, _ = receiver.requests[0]
    _, trace_id, post_id, _ = headers["traceparent"].split("-")
    assert bytes.fromhex(trace_id) == trace

    def path() -> list[str]:
        """The names from the receiver's parent up to the command's span."""
        by_id = {span.span_id: span for _, span in list(collector.spans)}
        names, at = [], bytes.fromhex(post_id)
        while at in by_id:
            names.append(by_id[at].name)
            at = by_id[at].parent_span_id
        return [*names, "send"] if at == send.span_id.to_bytes(8, "big") else names

    whole = ["POST", "commit", "batch", "process poc.generate", "send"]
    wait_until(lambda: path() == whole, 15, f"the whole path, not {path()}")
    resource, _ = collector.spans[0]
    assert resource["service.name"] == "poc-worker"
    assert resource["service.instance.id"] == "w0@test"


def test_a_trace_goes_through_a_worker_that_makes_none(
    start_worker: Any, settings: Settings, receiver: Receiver, config: PoCConfig
) -> None:
    """Given a message of any language, then the lines of its round and its callback tell it."""
    worker = start_worker("w0", seconds=0.05, POC_LOG_FORMAT="json")
    message = json.loads(
        raw_message("poc.generate", "t1", {"config": config.model_dump(mode="json")}, "poc.test")
    )
    message["headers"]["traceparent"] = PARENT
    with redis.Redis.from_url(settings.redis_url) as direct:
        direct.lpush("poc.test", json.dumps(message))
        wait_until(lambda: receiver.requests, description="a callback")
        # One that is none is as if it were not there.
        message["headers"] |= {"task": "poc.stop", "id": "t2", "traceparent": {"no": 1}}
        message["body"] = json.loads(raw_message("poc.stop", "t2", {}, "poc.test"))["body"]
        direct.lpush("poc.test", json.dumps(message))
        wait_until(lambda: "is over, STOPPED" in worker.log, description="the end")
    assert receiver.requests[0][1]["traceparent"] == PARENT
    lines = [json.loads(line) for line in worker.log.splitlines()]
    of_it = ("task t1 waits", " is generating", " is over")
    told = [line for line in lines if any(each in line["message"] for each in of_it)]
    assert [line["trace_id"] for line in told] == [PARENT[3:35]] * 3

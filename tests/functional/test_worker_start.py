"""How a worker process starts, and what it says when it can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import preloaded
from exactness import ALL_VALID
from shared.client import PoCClient
from shared.settings import Settings
from shared.store import Store
from support import ROOT, clean_environment, free_port, running, wait_until
from worker.children import end, spawn
from worker.tools.embedded import EmbeddedRedis, server_binary

pytestmark = pytest.mark.functional


def says_why(worker: Any) -> str:
    """The one line that a worker which can't start ends with; its exit status must be 2."""
    assert worker.process.wait(60) == 2, worker.log
    assert "Traceback" not in worker.log
    (line,) = (each for each in worker.log.splitlines() if "can't start" in each)
    return str(line)


def test_an_engine_that_does_not_load(start_worker: Any, store: Store) -> None:
    """It ends with status 2 and the engine's reason, and no worker is registered."""
    line = says_why(start_worker(wait=False, broken=1))
    assert line.endswith("the worker can't start: the fake engine was asked not to load")
    assert store.workers.listing() == []


def test_a_model_that_is_never_loaded(start_worker: Any, store: Store) -> None:
    """Past POC_LOAD_DEADLINE it ends with status 3 and says where it hangs."""
    worker = start_worker(wait=False, broken="hangs", POC_LOAD_DEADLINE="1")
    assert worker.process.wait(60) == 3, worker.log
    assert "no progress for 1 s (POC_LOAD_DEADLINE)" in worker.log
    assert "in load\n    threading.Event().wait()" in worker.log
    assert store.workers.listing() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_to_end_while_it_loads(number: int, start_worker: Any) -> None:
    """It holds nothing, so it ends at once, with status 0."""
    worker = start_worker(wait=False, broken="hangs")
    wait_until(lambda: "loading fake" in worker.log, 30, "the load")
    worker.process.send_signal(number)
    assert worker.process.wait(10) == 0, worker.log
    assert "ends before the model was loaded, as a signal asked" in worker.log


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_at_once_changes_nothing(second: int, start_worker: Any) -> None:
    """It may come while the first one is handled."""
    worker = start_worker()
    worker.process.send_signal(signal.SIGINT)
    worker.process.send_signal(second)
    assert worker.process.wait(20) == 0, worker.log


@pytest.mark.skipif(os.getuid() != 0, reason="only root would be warned")
def test_a_worker_of_root_is_not_warned_of_pickles(start_worker: Any) -> None:
    """Celery's warning is about what nobody here reads."""
    assert "Warning" not in start_worker().log


def test_a_defect_while_it_starts(start_worker: Any, store: Store) -> None:
    """Given an error that nobody expects, it ends with status 2 as well, and shows where it is."""
    worker = start_worker(wait=False, broken="memory")
    assert worker.process.wait(60) == 2, worker.log
    assert "can't start: the fake engine was asked to find no memory\nTraceback" in worker.log
    assert store.workers.listing() == []


def test_a_redis_that_is_not_there_yet_is_waited_for(start_worker: Any) -> None:
    """The model is loaded meanwhile."""
    with EmbeddedRedis() as server:
        server.kill()
        worker = start_worker(wait=False, POC_REDIS_URL=server.url)
        wait_until(lambda: "loaded fake" in worker.log, 30, "the model")
        assert "trying again until it answers" in worker.log
        server.start()
        wait_until(lambda: f"{worker.name} ready." in worker.log, 30, "the worker")


def test_a_redis_without_its_commands_is_not_waited_for(start_worker: Any, tmp_path: Path) -> None:
    """Given one whose EVAL was renamed away, which no waiting mends, it ends with the reason."""
    port = free_port()
    command = [server_binary(), "--port", str(port), "--rename-command", "EVAL", "HIDDEN"]
    with running(command, "Ready to accept", tmp_path / "server.log", cwd=tmp_path):
        worker = start_worker(wait=False, POC_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        assert "Redis can't do what is needed: unknown command" in says_why(worker)


def test_the_doctor_of_a_managed_redis_does_not_say_to_start_it(tmp_path: Path) -> None:
    """Given one without INFO and CONFIG, it looks at all else."""
    port = free_port()
    renamed = ["--rename-command", "INFO", "HIDDEN1", "--rename-command", "CONFIG", "HIDDEN2"]
    command = [server_binary(), "--port", str(port), *renamed]
    with running(command, "Ready to accept", tmp_path / "server.log", cwd=tmp_path):
        url = f"redis://127.0.0.1:{port}/0"
        env = clean_environment(POC_REDIS_URL=url, POC_ENGINE="fake_engine:load")
        done = preloaded.run(["doctor", "--json"], env=env, cwd=ROOT)
    findings = {each["name"]: each for each in json.loads(done.stdout)}
    assert findings["redis"]["level"] == "warn"
    assert "tells nothing about itself" in findings["redis"]["text"]
    assert findings["access"]["level"] == findings["clock"]["level"] == "ok"
    assert not any("start it" in each["remedy"] for each in findings.values())


@pytest.mark.parametrize("key", ["poc:test:workers", "poc.test"])
def test_a_key_of_another_type_is_not_waited_for(
    key: str, start_worker: Any, settings: Settings
) -> None:
    """Somebody else uses our names."""
    with closing(redis.Redis.from_url(settings.redis_url)) as direct:
        direct.set(key, "theirs")
    assert "can't do what is needed: WRONGTYPE" in says_why(start_worker(wait=False))


def test_a_key_that_changes_its_type_ends_a_worker(
    start_worker: Any, store: Store, client: PoCClient, settings: Settings
) -> None:
    """It is an incident, not an outage: the worker says why and does not wait for ever."""
    worker = start_worker("w0", seconds=0.02)
    client.generate(ALL_VALID, round_id="r1")
    wait_until(lambda: store.status().total_checked, description="a batch")
    with closing(redis.Redis.from_url(settings.redis_url)) as direct:
        direct.delete("poc:test:claims:r1")
        direct.set("poc:test:claims:r1", "theirs")
        assert worker.process.wait(30) == 3, worker.log
    assert "WRONGTYPE" in store.status().incidents[0].reason
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("key", ["poc.test", "poc:test:taken:w0@test"])
def test_a_list_of_commands_that_changes_its_type_ends_a_worker(
    key: str, start_worker: Any, store: Store, settings: Settings
) -> None:
    """Celery alone would try it again without an end."""
    worker = start_worker("w0")
    with closing(redis.Redis.from_url(settings.redis_url)) as direct:
        direct.set(key, "theirs")
        assert worker.process.wait(30) == 3, worker.log
    assert "WRONGTYPE" in store.status().incidents[0].reason


def test_a_worker_whose_name_was_taken_over_says_so(
    start_worker: Any, store: Store, settings: Settings
) -> None:
    """It stood still for as long as its namesake waited."""
    worker = start_worker("w0")
    with closing(redis.Redis.from_url(settings.redis_url)) as direct:
        direct.hset("poc:test:worker:w0@test", "instance", "another")
        assert worker.process.wait(30) == 3, worker.log
    assert (
        "the name w0@test was taken over by another process" in store.status().incidents[0].reason
    )


def test_a_path_in_another_encoding_is_a_path(start_worker: Any, store: Store) -> None:
    """Half a character of it is shown as one that is not known."""
    start_worker("w0", model="caf\udce9")
    assert [each.model for each in store.workers.listing()] == ["caf?"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"POC_ENGINE": "transformers", "POC_MODEL": "/nowhere/model"}, "/nowhere/model"),
        ({"POC_ENGINE": "transformers", "POC_MODEL": ""}, "POC_MODEL"),
        ({"POC_ENGINE": "vllm"}, "POC_ENGINE=vllm: vLLM is not installed"),
        ({"POC_ENGINE": "magic"}, "POC_ENGINE=magic: there is no such engine"),
        ({"POC_ENGINE": "nowhere:load"}, "can't import 'nowhere'"),
        ({"POC_ENGINE": "fake_engine:nothing"}, "'fake_engine' has no callable 'nothing'"),
    ],
)
def test_an_engine_that_is_not_there(
    options: dict[str, str], message: str, start_worker: Any
) -> None:
    """The line names the setting or the path that is wrong."""
    assert message in says_why(start_worker(wait=False, **options))


def test_another_model_in_the_namespace(start_worker: Any, store: Store) -> None:
    """The second worker ends, names both fingerprints and the remedy; the first is left alone."""
    start_worker("w0")
    line = says_why(start_worker("w1", wait=False, weights="other"))
    assert "fingerprint-of-fake" in line
    assert "fingerprint-of-other" in line
    assert "choose another POC_NAMESPACE" in line
    assert [each.name for each in store.workers.listing()] == ["w0@test"]


def test_a_name_that_another_worker_has(start_worker: Any, store: Store) -> None:
    """The second ends and says so; the first is left alone, and listed."""
    first = start_worker("w0")
    (shown,) = store.workers.listing()
    line = says_why(start_worker("w0", wait=False))
    assert "another worker lives under the name w0@test: give each its own" in line
    assert first.process.poll() is None
    assert [each.pid for each in store.workers.listing()] == [shown.pid]


def test_a_killed_worker_gets_its_name_back(start_worker: Any, store: Store) -> None:
    """When it is started again, long before it would be missed."""
    start_worker("w0").kill()
    again = start_worker("w0", wait=False)
    wait_until(
        lambda: [each.pid for each in store.workers.listing()] == [again.process.pid],
        10,
        "the name to be its own",
    )


def test_a_model_that_is_not_the_pinned_one(start_worker: Any) -> None:
    """POC_MODEL_FINGERPRINT holds from the first worker on."""
    line = says_why(start_worker(wait=False, POC_MODEL_FINGERPRINT="pinned"))
    assert "POC_MODEL_FINGERPRINT is pinned, and fake has fingerprint-of-fake" in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("POC_MODLE", "x", "POC_MODLE (did you mean POC_MODEL?)"),
        ("POC_HEARTBEAT_S", "0", "POC_HEARTBEAT_S='0': "),
        ("POC_NAMESPACE", "a:b", "POC_NAMESPACE='a:b': "),
    ],
)
def test_a_wrong_setting(name: str, value: str, message: str, start_worker: Any) -> None:
    """It is refused before anything is loaded, in one line, with status 2."""
    worker = start_worker(wait=False, **{name: value})
    assert worker.process.wait(60) == 2
    (line,) = worker.log.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_celerys_own_command_line(settings: Settings, client: PoCClient, tmp_path: Path) -> None:
    """`celery -A worker.queue.entry worker` is a whole worker, no less guarded than ours."""
    log = tmp_path / "log"
    options = ["-P", "threads", "-n", "w0@test", "--without-gossip", "--without-mingle"]
    process = spawn(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker.queue.entry",
            "worker",
            "-l",
            "INFO",
            *options,
        ],
        env=clean_environment()
        | {
            "POC_REDIS_URL": settings.redis_url,
            "POC_NAMESPACE": settings.namespace,
            "POC_ENGINE": "fake_engine:load",
            "PYTHONPATH": str(ROOT / "tests"),
        },
        cwd=ROOT,
        log_path=log,
    )
    try:
        wait_until(lambda: "w0@test ready." in log.read_text(), 30, "the worker to be ready")
        config = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5}
        assert client.init(config).block_hash == "b"
        assert "Traceback" not in log.read_text()  # Celery has one for a question that is not taken
        url = settings.redis_url
        with Celery("theirs", broker=url, backend=url, set_as_current=False) as theirs:
            theirs.control.add_consumer("poc.other", reply=True, timeout=2)
            (queues,) = theirs.control.inspect(timeout=2).active_queues().values()
        assert [queue["name"] for queue in queues] == ["poc.test"]
    finally:
        assert end(process) == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_worker_whose_streams_are_closed(
    closed: str, settings: Settings, store: Store, client: PoCClient
) -> None:
    """It works as any other, and has nowhere to say so."""
    env = clean_environment(
        POC_REDIS_URL=settings.redis_url,
        POC_NAMESPACE=settings.namespace,
        POC_ENGINE="fake_engine:load",
        PYTHONPATH=str(ROOT / "tests"),
    )
    command = f"exec {sys.executable} -m worker.cli worker {closed}"
    process = subprocess.Popen(["sh", "-c", command], env=env, cwd=ROOT)
    try:
        wait_until(lambda: process.poll() is not None or store.workers.listing(), 30, "the worker")
        assert process.poll() is None
        assert client.stop().state == "STOPPED"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_the_gpu_is_chosen_before_torch_is_imported() -> None:
    """Torch looks at CUDA_VISIBLE_DEVICES once: it must be set by then."""
    script = """
import os, sys
from shared.settings import load_settings
from worker.queue.app import create_app
create_app(load_settings({}, gpu="3"))
assert "torch" not in sys.modules
assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)

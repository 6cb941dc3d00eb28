"""No secret is seen where it does not belong: recognisable ones are put in, and looked for."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import preloaded
from caller import caller
from receiver import Receiver
from shared.broker import celery_app
from shared.settings import load_settings
from support import ROOT, clean_environment, free_port, wait_until
from worker.children import end, spawn
from worker.tools.embedded import EmbeddedRedis

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

CALLBACK_SECRET = base64.b64encode(b"callback-secret-mockingbird-01").decode()
FLOWER_PASSWORD = "flower-password-mockingbird"
SECRETS = {
    "the Redis password": "redis-password-mockingbird",
    "the callback secret": CALLBACK_SECRET,
    "the callback secret, decoded": "callback-secret-mockingbird",
    "an API token": "api-token-mockingbird",
    "Flower's password": FLOWER_PASSWORD,
}


@pytest.fixture
def receiver_url() -> Iterator[str]:
    """Of one that answers 500 at first, so that there are attempts that fail."""
    with Receiver(500, 500, 500) as receiver:
        yield receiver.url


class Places:
    """What was said anywhere, by the name of the place."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def add(self, place: str, text: object) -> None:
        assert str(text), f"{place} said nothing, so nothing could be found there"
        self.said[place] = self.said.get(place, "") + str(text)

    def leaks(self) -> list[str]:
        return [
            f"{secret} in {place}: ...{text[max(0, text.find(value) - 100) :][:200]}"
            for place, text in self.said.items()
            for secret, value in SECRETS.items()
            if value in text
        ]


def everything_in(client: redis.Redis) -> Iterator[tuple[str, object]]:
    """Each key with all that it holds."""
    read = {
        "string": lambda key: client.get(key),
        "hash": lambda key: client.hgetall(key),
        "list": lambda key: client.lrange(key, 0, -1),
        "set": lambda key: client.smembers(key),
        "zset": lambda key: client.zrange(key, 0, -1),
        "stream": lambda key: client.xrange(key),
    }
    for key in client.keys("*"):
        if (kind := client.type(key)) != "none":  # it has just expired
            yield key, read[kind](key)


def test_a_node_gives_no_secret_away(tmp_path: Path, receiver_url: str) -> None:
    """Given every process at DEBUG and a round with trouble, no log, key or page has a secret."""
    places = Places()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis())
        admin = redis.Redis.from_url(server.url, decode_responses=True)
        stack.enter_context(contextlib.closing(admin))

        def protect() -> None:
            password = SECRETS["the Redis password"]
            admin.acl_setuser(
                "node",
                enabled=True,
                passwords=[f"+{password}"],
                keys=["*"],
                channels=["*"],
                commands=["+@all"],
            )

        protect()
        url = server.url.replace("//", f"//node:{SECRETS['the Redis password']}@")
        env = clean_environment() | {
            "POC_REDIS_URL": url,
            "POC_NAMESPACE": "test",
            "POC_LOG_LEVEL": "DEBUG",
            "POC_CALLBACK_SECRET": CALLBACK_SECRET,
            "POC_API_TOKENS": f"{SECRETS['an API token']},another-token-0123456",
            "POC_API_PORT": str(free_port()),
            "POC_HEARTBEAT_S": "0.2",
            "POC_ENGINE": "fake_engine:load",
            "POC_MODEL": "fake?seconds=0.02",
            "POC_WORKER_NAME": "w0@test",
            "PYTHONPATH": str(ROOT / "tests"),
            "CELERY_BROKER_URL": url,
            "FLOWER_BASIC_AUTH": f"u:{FLOWER_PASSWORD}",
            "FLOWER_PORT": str(free_port()),
            "FLOWER_ADDRESS": "127.0.0.1",
        }
        logs: dict[str, Path] = {}
        processes: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, *command: str) -> None:
            logs[name] = tmp_path / f"{name}.log"
            words = [sys.executable, "-m", *command]
            processes[name] = spawn(words, env=env, cwd=ROOT, log_path=logs[name])
            stack.callback(end, processes[name])

        def has_said(name: str, text: str) -> None:
            wait_until(lambda: re.search(text, logs[name].read_text()), 60, f"{name}: {text}")

        def poc(*words: str, stdin: str = "", status: int = 0) -> str:
            done = preloaded.run(words, env=env, cwd=ROOT, stdin=stdin)
            assert done.returncode == status, done.stderr
            places.add(f"poc {words[0]}", done.stdout + done.stderr)
            return done.stdout

        start("worker", "worker.cli", "worker")
        start("callbacks", "worker.cli", "callbacks")
        start("api", "worker.cli", "api")
        start("flower", "celery", "flower", "--logging=DEBUG")
        has_said("worker", "w0@test ready")
        has_said("api", "listens on")
        has_said("flower", "Connected to redis")

        api = stack.enter_context(
            caller(
                f"http://127.0.0.1:{env['POC_API_PORT']}",
                headers={"Authorization": f"Bearer {SECRETS['an API token']}"},
            )
        )
        flower = stack.enter_context(
            caller(
                f"http://127.0.0.1:{env['FLOWER_PORT']}", auth=("u", SECRETS["Flower's password"])
            )
        )

        # A round with callbacks that fail at first, a verdict, and a command that is refused.
        config = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.9}
        poc("generate", "--config", "-", stdin=json.dumps(config | {"url": receiver_url}))
        wait_until(
            lambda: api.get("/api/v1/pow/status").json()["callbacks_delivered"],
            timeout=60,
            description="a callback to be delivered",
        )
        places.add("a refused config", poc_refused(env, config))
        poc("stop")
        proofs = poc("proofs", "--count", "4")
        poc("validate", "--batch", "-", stdin=proofs)
        poc("status")
        poc("doctor")
        for path in ("/api/v1/pow/status", "/api/v1/pow/nonces", "/openapi.json", "/readyz"):
            places.add(f"the API's {path}", api.get(path).text)

        # What an operator can see of it.
        workers = flower.get("/api/workers", params={"refresh": 1}).json()
        assert "conf" in workers["w0@test"]
        assert "stats" in workers["w0@test"]
        places.add("Flower's workers", json.dumps(workers))
        tasks = flower.get("/api/tasks").json()
        assert len(tasks) >= 3
        places.add("Flower's tasks", json.dumps(tasks))
        for path in (
            "/workers",
            "/worker/w0@test",
            "/tasks",
            "/broker",
            f"/task/{next(iter(tasks))}",
        ):
            page = flower.get(path)
            assert page.status_code == 200, path
            places.add(f"Flower's page {path}", page.text)
        settings = load_settings({k: v for k, v in env.items() if k.startswith("POC_")})
        with contextlib.closing(celery_app(settings)) as app:
            for question in ("conf", "stats", "report", "registered", "query_task"):
                arguments = {"ids": list(tasks)} if question == "query_task" else {}
                answers = app.control.broadcast(question, reply=True, arguments=arguments, limit=1)
                places.add(f"remote control's {question}", answers)
        for key, value in everything_in(admin):
            places.add(f"the key {key}", value)
        for name, process in processes.items():
            command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
            places.add(f"the command line of {name}", command_line)

        # Redis goes, and comes back with another password.
        server.kill()
        has_said("worker", "nothing is lost")
        server.start()
        admin.config_set("requirepass", "other")
        for words in (("status",), ("stop", "--timeout", "3"), ("doctor",)):
            poc(*words, status=1)
        has_said("worker", "(?i)invalid username-password pair")
        assert api.get("/api/v1/pow/status").status_code == 503
        places.add("the API without Redis", api.get("/api/v1/pow/status").text)
        for name, process in processes.items():
            end(process, timeout=5)  # Flower does not end by itself while Redis refuses it
            places.add(f"the log of {name}", logs[name].read_text())
    assert places.leaks() == []


def poc_refused(env: dict[str, str], config: dict[str, Any]) -> str:
    """What is said about a callback URL with a password in it."""
    url = f"http://me:{SECRETS['the Redis password']}@127.0.0.1:9/x"
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "init", "--config", "-"],
        env=env,
        cwd=ROOT,
        input=json.dumps(config | {"url": url}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "takes no user and password" in done.stderr
    return done.stdout + done.stderr

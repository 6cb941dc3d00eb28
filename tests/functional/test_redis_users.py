"""The users of deploy/users.acl.sh on a real server: each can do its job, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import preloaded
from caller import caller
from calls import BLOCK, POW
from serving_api import serving_gateway
from shared.client import PoCClient
from shared.errors import StoreRefused
from shared.settings import Settings, load_settings
from support import ROOT, clean_environment, free_port, running, wait_until
from worker.tools.embedded import server_binary
from worker.tools.make_model import make_model

pytestmark = pytest.mark.functional

USERS = ("admin", "worker", "controller", "api", "flower")
#: Blanks and signs that a careless script would trip over.
PASSWORD = {user: f"p w/{user}$&'|" for user in USERS}
ROUND = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.9, "seq_len": 8}


def quoted(user: str) -> str:
    """A user's password as it stands in a URL."""
    return "".join(f"%{byte:02X}" for byte in PASSWORD[user].encode())


def variables() -> dict[str, str]:
    """What deploy/users.acl.sh needs."""
    passwords = {f"POC_REDIS_{user.upper()}_PASSWORD": PASSWORD[user] for user in USERS}
    return {"PATH": os.environ["PATH"], "POC_NAMESPACE": "test", **passwords}


def acl_file(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["sh", "deploy/users.acl.sh"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that has the users, and nobody else."""
    directory = tmp_path_factory.mktemp("server")
    written = acl_file(variables())
    assert written.returncode == 0, written.stderr
    (directory / "users.acl").write_text(written.stdout)
    found = free_port()
    options = f"--bind 127.0.0.1 --port {found} --save '' --aclfile users.acl".split()
    options[options.index("''")] = ""
    command = [server_binary(), *options]
    with running(command, "Ready to accept", directory / "server.log", cwd=directory):
        yield found


@pytest.fixture
def settings_of(port: int) -> Callable[[str], Settings]:
    """The settings of a process that has a user's password."""

    def settings_of(user: str) -> Settings:
        url = f"redis://{user}:{quoted(user)}@127.0.0.1:{port}/0"
        return load_settings(
            {}, redis_url=url, namespace="test", lease_s="2", heartbeat_s="0.2", api_port=0
        )

    return settings_of


@pytest.fixture
def as_user(port: int) -> Iterator[Callable[[str], redis.Redis]]:
    """A client that is a user."""
    with contextlib.ExitStack() as stack:

        def as_user(user: str) -> redis.Redis:
            client = redis.Redis(port=port, username=user, password=PASSWORD[user])
            return stack.enter_context(contextlib.closing(client))

        yield as_user


@pytest.fixture
def settings(settings_of: Callable[[str], Settings]) -> Settings:
    """`start_worker` starts workers with these."""
    return settings_of("worker")


def environment(settings: Settings) -> dict[str, str]:
    return clean_environment() | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": "test",
    }


def test_a_whole_round_with_each_process_as_its_user(
    settings_of: Callable[[str], Settings],
    as_user: Callable[[str], redis.Redis],
    start_worker: Any,
    tmp_path: Path,
) -> None:
    """Given worker, API, Flower and controller as their users, none is ever refused anything."""
    admin = as_user("admin")
    admin.acl_log_reset()
    controller = environment(settings_of("controller"))

    def poc(*words: str, stdin: str = "") -> str:
        done = preloaded.run(words, env=controller, cwd=ROOT, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    worker = start_worker("w0", seconds=0.02)
    flower_port = free_port()
    api_env = environment(settings_of("api")) | {"POC_API_PORT": "0"}
    flower_env = environment(settings_of("flower"))
    flower_env |= {"CELERY_BROKER_URL": flower_env["POC_REDIS_URL"], "FLOWER_BASIC_AUTH": "u:p"}
    api_log, flower_log = tmp_path / "api.log", tmp_path / "flower.log"
    python = [sys.executable, "-m"]
    api_command = [*python, "worker.cli", "api"]
    flower_command = [*python, "celery", "flower", f"--port={flower_port}", "--address=127.0.0.1"]
    with (
        running(api_command, r"http://127\S+", api_log, env=api_env, cwd=ROOT) as (of_api, url),
        running(flower_command, "Connected to redis", flower_log, env=flower_env, cwd=ROOT) as (
            of_flower,
            _,
        ),
        caller(url[0]) as api,
        caller(f"http://127.0.0.1:{flower_port}", auth=("u", "p")) as flower,
    ):
        assert api.get("/readyz").status_code == 200
        # A receiver that is not there: the worker also keeps an outbox.
        config = ROUND | {"callback_url": f"http://127.0.0.1:{free_port()}"}
        poc("generate", "--config", "-", stdin=json.dumps(config))
        wait_until(
            lambda: api.get("/api/v1/pow/status").json()["total_valid"], description="a valid nonce"
        )
        tasks = wait_until(
            lambda: flower.get("/api/tasks").json(), description="Flower to hear of the round"
        )
        assert "poc.generate" in {task["name"] for task in tasks.values()}
        workers = flower.get("/api/workers", params={"refresh": 1}).json()
        assert "poc.stop" in workers[worker.name]["registered"]
        assert flower.get("/api/queues/length").json()["active_queues"]
        stopped = json.loads(poc("stop", "--json"))
        assert json.loads(poc("status", "--json"))["round"]["state"] == "STOPPED"
        assert api.get(f"/api/v1/pow/rounds/{stopped['round_id']}").json()["state"] == "STOPPED"
        assert api.get("/api/v1/pow/nonces").json()["total_valid"] == stopped["total_valid"]
        assert "poc_redis_up 1.0" in api.get("/metrics").text
        assert json.loads(poc("receipt"))["payload"]
        proofs = poc("proofs", "--count", "8")
        verdict = json.loads(poc("validate", "--batch", "-", "--json", stdin=proofs))
        assert verdict["fraud_detected"] is False
        seen = api.get("/api/v1/pow/overview").json()
        assert (seen["node"]["state"], seen["outbox_length"] > 0) == ("STOPPED", True)
        assert seen["history"]
        assert seen["histogram"]
        assert seen["outcomes"][0]["fraud_detected"] is False
        assert seen["totals"]["validations"] == {"honest": 1}
        assert len(api.get("/api/v1/pow/rounds").json()["rounds"]) == 1
        assert of_api.poll() is None, api_log.read_text()
        assert of_flower.poll() is None, flower_log.read_text()
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    assert [(e["username"], e["object"]) for e in admin.acl_log()] == []
    assert "NOPERM" not in worker.log + flower_log.read_text()


def test_the_gateway_is_a_controller(
    settings_of: Callable[[str], Settings],
    as_user: Callable[[str], redis.Redis],
    start_worker: Any,
    tmp_path: Path,
) -> None:
    """Given its user, then rounds, jobs and the API beside it work, with a real worker."""
    admin = as_user("admin")
    admin.acl_log_reset()
    model = make_model(tmp_path / "model", max_seq_len=64)
    start_worker("w0", POC_ENGINE="transformers", POC_MODEL=model, POC_DEVICE="cpu")
    url = settings_of("controller").redis_url
    variables = {"POC_GATE_CHAT": "true", "POC_GATEWAY_MODEL": "m"}
    asked = {**BLOCK, "node_id": 0, "node_count": 1, "params": {"model": "m", "seq_len": 8}}
    with (
        serving_gateway(url, tmp_path / "gateway.log", "--with-api", **variables) as (_, at),
        caller(at) as gateway,
    ):

        def said(method: str, path: str, **body: Any) -> Any:
            answer = gateway.request(method, path, json=body or None)
            assert answer.status_code == 200, answer.text
            return answer.json()

        said("POST", f"{POW}/init/generate", **asked)
        assert said("GET", f"{POW}/status")["status"] == "GENERATING"
        assert gateway.get("/api/v1/gate").status_code == 503
        job = said("POST", f"{POW}/generate", **asked, nonces=[1, 2])["request_id"]
        wait_until(
            lambda: said("GET", f"{POW}/generate/{job}")["status"] == "completed",
            description="the job's end",
        )
        said("POST", f"{POW}/stop", any="thing")
        for path in ("/readyz", "/v1/models", "/api/v1/state", f"{POW}/versions"):
            said("GET", path)
        for path in ("status", "overview", "rounds", "nonces"):
            said("GET", f"/node/api/v1/pow/{path}")
    assert [(e["username"], e["object"]) for e in admin.acl_log()] == []


#: What each user must not do. Keys are those of the namespace that the server is for.
REFUSED = {
    "controller": [
        "RPOP poc.test",  # take a command away
        "LRANGE poc.test 0 -1",  # read others' commands
        "DEL poc.test",
        "LPUSH poc.other x",  # another node's queue
        "HGETALL poc:other:status",
        "HSET poc:test:status state IDLE",
        "HSET poc:test:nonces:r1 1 0.1",
        "LPUSH poc:test:found:r1 1",
        "SET celery-task-meta-x forged",
        "SET poc:other:expected:x 1",
        "XADD poc:test:outbox * url http://evil",
        "XRANGE poc:test:outbox - +",
        "PUBLISH /0.celery.pidbox shutdown",  # remote control, by which workers can be ended
        "PUBLISH poc:test:wake work",
        "SUBSCRIBE /0.celeryev/task.sent",
        "EVAL return 0",
        "SCAN 0",
        "KEYS *",
        "CLIENT TRACKING ON BCAST",  # it tells the names of all keys
        "FLUSHALL",
        "CONFIG GET *",
    ],
    "api": [
        "LPUSH poc.test x",
        "LRANGE poc.test 0 -1",
        "GET celery-task-meta-x",
        "HSET poc:test:status state IDLE",
        "DEL poc:test:status",
        "HGETALL poc:test:run:r1",
        "XRANGE poc:test:outbox - +",
        "LRANGE poc:test:dead_letters 0 -1",
        "HGETALL poc:other:status",
        "PUBLISH poc:test:wake work",
        "SUBSCRIBE poc:test:wake",
        "EVAL return 0",
        "SCAN 0",
        "KEYS *",
        "CLIENT TRACKING ON BCAST",
        "CONFIG GET *",
    ],
    "flower": [
        "LPUSH poc.test x",
        "LPUSH x.celery.pidbox x",  # a list that looks like a worker's mailbox
        "LPUSH poc:test:taken:w x",  # what workers would put back into the queue
        "HSET unacked tag x",
        "SADD _kombu.binding.poc.test x",  # where commands go
        "EVAL return 0",
        "FUNCTION LOAD #!lua",
        "SCRIPT FLUSH",
        "SCAN 0",
        "RANDOMKEY",
        "CLIENT TRACKING ON BCAST",
        "LRANGE poc.test 0 -1",
        "HGETALL poc:test:status",
        "HSET poc:test:status state IDLE",
        "GET celery-task-meta-x",
        "XRANGE poc:test:outbox - +",
        "PUBLISH poc:test:wake work",
        "KEYS *",
        "CONFIG GET *",
    ],
    "worker": [
        "LPUSH poc.other x",
        "HGETALL poc:other:status",
        "FUNCTION LOAD #!lua",
        "SCAN 0",
        "RANDOMKEY",
        "CLIENT TRACKING ON BCAST",
        "EVAL return\tredis.call('HGETALL','poc:other:status')",
        "PUBLISH poc:other:wake work",
        "KEYS *",
        "FLUSHALL",
        "CONFIG SET appendonly no",
        "ACL LIST",
        "MONITOR",
        "SHUTDOWN",
        "REPLICAOF no one",
    ],
}


@pytest.mark.parametrize(
    ("user", "command"), [(user, command) for user, all_ in REFUSED.items() for command in all_]
)
def test_a_user_can_t_do_what_is_others(
    user: str, command: str, as_user: Callable[[str], redis.Redis]
) -> None:
    words = [word.replace("\t", " ") for word in command.split(" ")]
    if words[0] == "EVAL":
        words = ["EVAL", " ".join(words[1:]), "0"]
    with pytest.raises((redis.exceptions.NoPermissionError, redis.ResponseError)) as caught:
        as_user(user).execute_command(*words)
    assert re.search("no permissions|No permissions|can't access|ACL failure", str(caught.value))


def doctor(settings: Settings) -> subprocess.CompletedProcess[str]:
    """What `poc doctor` says to a user."""
    # An engine that needs no torch.
    env = environment(settings) | {"POC_ENGINE": "fake_engine:load"}
    return preloaded.run(["doctor", "--json"], env=env, cwd=ROOT)


@pytest.mark.parametrize(("user", "level"), [("admin", "ok"), ("worker", "warn")])
def test_the_doctor_says_what_it_may_not_see(
    user: str, level: str, settings_of: Callable[[str], Settings], start_worker: Any
) -> None:
    """A server that says no is not one that is away, and the rest is looked at all the same."""
    worker = start_worker("w0")
    done = doctor(settings_of(user))
    findings = {each["name"]: each for each in json.loads(done.stdout)}
    assert findings["redis"]["level"] == level
    assert findings["access"]["level"] == "ok"
    assert findings["workers"] == {
        "name": "workers",
        "level": "ok",
        "text": worker.name,
        "remedy": "",
    }


@pytest.mark.parametrize("user", ["controller", "api", "flower"])
def test_the_doctor_goes_on_where_it_may_not_ask(
    user: str, settings_of: Callable[[str], Settings], start_worker: Any
) -> None:
    """It names each check that this user may not make, and who may."""
    start_worker("w0")
    done = doctor(settings_of(user))
    assert (done.returncode, done.stderr) == (0, "")
    findings = {each["name"]: each for each in json.loads(done.stdout)}
    assert findings["clock"]["level"] == "ok"
    assert findings["access"]["level"] == "warn"
    assert findings["access"]["text"].startswith("a worker would end as this user: Redis refuses")
    for name in ("redis", "workers"):
        assert findings[name]["level"] == "warn"
        assert findings[name]["remedy"] == "run poc doctor once as a user who may, such as admin"
    assert findings["workers"]["text"].startswith("not looked at, since this user may not: ")
    assert "settings" in findings


#: What makes a worker's user the wrong one, and what is said about it.
WRONG = {
    "the controller": ("controller:{controller}@{host}/0", "may, docs/security.md lists them"),
    "the API": ("api:{api}@{host}/0", "may, docs/security.md lists them"),
    "Flower": ("flower:{flower}@{host}/0", "may, docs/security.md lists them"),
    "a wrong password": ("worker:wrong@{host}/0", "mend user and password in POC_REDIS_URL"),
    "no password": ("{host}/0", "it asks for a user and a password"),
    "no such database": ("admin:{admin}@{host}/99", "name another database in POC_REDIS_URL"),
}


def wrong_url(who: str, port: int) -> str:
    passwords = {user: quoted(user) for user in USERS}
    return "redis://" + WRONG[who][0].format(host=f"127.0.0.1:{port}", **passwords)


@pytest.mark.parametrize("who", WRONG)
def test_a_worker_that_redis_refuses_ends_at_once(who: str, port: int, start_worker: Any) -> None:
    """Before it loads its model, with status 2 and one line; no waiting would mend it."""
    worker = start_worker(wait=False, POC_REDIS_URL=wrong_url(who, port), broken="hangs")
    assert worker.process.wait(20) == 2, worker.log
    (line,) = worker.log.splitlines()
    assert "the worker can't start: Redis refuses: " in line
    assert WRONG[who][1] in line


def test_a_worker_of_another_namespace_is_refused(start_worker: Any) -> None:
    """Its user may be right, and its keys are not."""
    worker = start_worker(wait=False, POC_NAMESPACE="other", broken="hangs")
    assert worker.process.wait(20) == 2, worker.log
    assert "Redis refuses: No permissions to access a key" in worker.log


def test_a_worker_that_may_not_consume_ends(
    settings_of: Callable[[str], Settings], start_worker: Any
) -> None:
    """Given a user who may do what a worker needs, but not what Celery does: in database 1."""
    url = settings_of("worker").redis_url.removesuffix("0") + "1"
    worker = start_worker(wait=False, POC_REDIS_URL=url)
    assert worker.process.wait(30) == 2, worker.log
    assert "can't start: Redis refuses: No permissions to access a channel" in worker.log


@pytest.mark.parametrize(
    ("who", "command", "status"),
    [
        ("a wrong password", ["api", "--api-port", "0"], 2),
        ("no such database", ["callbacks"], 2),
        ("no password", ["status"], 1),
        ("a wrong password", ["stop", "--timeout", "60"], 1),
        ("no such database", ["stop", "--timeout", "60"], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_whoever_redis_refuses_says_so_in_one_line(
    who: str, command: list[str], status: int, port: int
) -> None:
    """At once: what begins ends with 2, since its settings are wrong, and a command with 1."""
    env = clean_environment() | {"POC_REDIS_URL": wrong_url(who, port), "NO_COLOR": "1"}
    done = preloaded.run(command, env=env, cwd=ROOT, timeout=20)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Redis refuses: ")
    assert WRONG[who][1] in line


def test_a_command_that_may_not_be_sent_is_no_outage(
    as_user: Callable[[str], redis.Redis], port: int
) -> None:
    """Given a user who may read results and not enqueue, it is told so at once."""
    rules = "on >pw -@all +@connection +@read +multi +exec ~*"
    as_user("admin").execute_command("ACL", "SETUSER", "reader", *rules.split())
    client = PoCClient(
        load_settings({}, redis_url=f"redis://reader:pw@127.0.0.1:{port}/0"), timeout=60
    )
    began = time.monotonic()
    with contextlib.closing(client), pytest.raises(StoreRefused, match="User reader has no perm"):
        client.stop()
    assert time.monotonic() - began < 10


def test_a_worker_whose_user_is_locked_out_waits(
    as_user: Callable[[str], redis.Redis], start_worker: Any
) -> None:
    """Given one that runs, a refusal is an outage: it goes on when its user is let in again."""
    worker = start_worker("w0")
    admin = as_user("admin")
    admin.execute_command("ACL SETUSER worker off")
    admin.execute_command("CLIENT KILL USER worker")
    try:
        wait_until(lambda: "trying again until it answers" in worker.log, 30, "the refusal")
        time.sleep(3)
        assert "Redis answers again" not in worker.log
    finally:
        admin.execute_command("ACL SETUSER worker on")
    wait_until(lambda: "Redis answers again" in worker.log, 30, "the end of it")
    worker.process.terminate()
    assert worker.process.wait(30) == 0
    assert worker.log.count("trying again until it answers") == 1
    assert worker.log.count("Redis answers again") == 1


def test_a_worker_that_may_not_take_commands_any_more_waits(
    as_user: Callable[[str], redis.Redis], settings: Settings, start_worker: Any
) -> None:
    """Given one that has run for a while, then it takes them again when it may."""
    worker = start_worker("w0")
    admin = as_user("admin")
    time.sleep(2)
    admin.execute_command("ACL SETUSER worker -blmove")
    try:
        wait_until(lambda: "NoPermissionError" in worker.log, 30, "the refusal")
    finally:
        admin.execute_command("ACL SETUSER worker +blmove")
    with contextlib.closing(PoCClient(settings, timeout=30)) as client:
        client.stop()
    assert worker.process.poll() is None


def test_a_controller_may_use_a_celery_client_of_its_own(
    settings_of: Callable[[str], Settings], as_user: Callable[[str], redis.Redis], start_worker: Any
) -> None:
    """Given no more than the broker's URL and the queue's name, it enqueues and has its result."""
    start_worker("w0")
    as_user("admin").acl_log_reset()
    url = settings_of("controller").redis_url
    with Celery("theirs", broker=url, backend=url, set_as_current=False) as app:
        asked = app.send_task(
            "poc.init", kwargs={"config": ROUND, "replace": True}, queue="poc.test"
        )
        assert asked.get(timeout=20)["block_hash"] == "b"
    assert [(e["username"], e["object"]) for e in as_user("admin").acl_log()] == []


def test_nobody_comes_in_without_a_password(port: int) -> None:
    """A stranger gets no answer to anything, and a password of another user opens nothing."""
    with socket.create_connection(("127.0.0.1", port)) as stranger, stranger.makefile("rb") as said:

        def ask(command: str) -> bytes:
            stranger.sendall(command.encode() + b"\r\n")
            return said.readline()

        assert ask("PING").startswith(b"-NOAUTH")
        assert ask("HGETALL poc:test:status").startswith(b"-NOAUTH")
        for user in ("default", *USERS):
            for password in ('""', "wrong", "default", f'"{PASSWORD["api"] * (user != "api")}"'):
                assert ask(f"AUTH {user} {password}").startswith((b"-WRONGPASS", b"-ERR"))
        assert ask("PING").startswith(b"-NOAUTH")


@pytest.mark.parametrize("user", USERS)
def test_a_password_that_is_missing_is_named(user: str) -> None:
    """There is no default."""
    env = variables()
    del env[f"POC_REDIS_{user.upper()}_PASSWORD"]
    done = acl_file(env)
    assert done.returncode == 1
    assert f"POC_REDIS_{user.upper()}_PASSWORD is empty or not set" in done.stderr


def test_the_file_holds_no_password() -> None:
    written = acl_file(variables()).stdout
    assert all(password not in written for password in PASSWORD.values())


def make_secrets(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run deploy/secrets.sh in `directory`, with a umask that lets everybody read."""
    return subprocess.run(
        ["sh", ROOT / "deploy" / "secrets.sh"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        umask=0o022,
    )


def test_secrets_are_made_anew_and_complete(tmp_path: Path) -> None:
    """Two runs have no value in common, and one is all that the users need."""

    def made(name: str) -> dict[str, str]:
        directory = tmp_path / name
        directory.mkdir()
        assert make_secrets(directory).returncode == 0
        written = (directory / ".env").read_text()
        return dict(line.split("=", 1) for line in written.splitlines())

    one, two = made("one"), made("two")
    assert not set(one.values()) & set(two.values())
    assert acl_file({"PATH": os.environ["PATH"], **one}).returncode == 0
    load_settings({name: one[name] for name in ("POC_API_TOKENS", "POC_CALLBACK_SECRET")})


def test_secrets_are_never_overwritten(tmp_path: Path) -> None:
    """Given a node that runs with its .env, a second run says so and changes nothing."""
    make_secrets(tmp_path)
    before = (tmp_path / ".env").read_text()
    again = make_secrets(tmp_path)
    assert again.returncode == 1
    assert ".env is there already" in again.stderr
    assert (tmp_path / ".env").read_text() == before


def test_the_commands_of_the_docs(tmp_path: Path) -> None:
    """They make both files, for their owner's eyes only, and leave no variable in the shell."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    shell = next(s for s in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "--aclfile" in s)
    shell = shell.replace("valkey-server --aclfile users.acl", "env")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    done = subprocess.run(
        ["sh", "-euc", shell],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        umask=0o022,
    )
    assert done.returncode == 0, done.stderr
    assert "POC_" not in done.stdout
    assert (tmp_path / "users.acl").read_text().count("user ") == len(USERS) + 1
    for name in (".env", "users.acl"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name


def test_neither_file_gets_into_git_or_an_image() -> None:
    assert {".env", "users.acl"} <= set((ROOT / ".gitignore").read_text().splitlines())
    # All is left out of the image but what is named, and neither is.
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r[0] != "#"]
    assert rules[0] == "*"
    assert not {"!.env", "!users.acl", "!deploy"} & set(rules)

"""The command line as its users see it: processes, their output and their exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import preloaded
from exactness import ALL_VALID
from fake_engine import fake_distance
from shared.client import PoCClient
from shared.data import ProofBatch
from shared.settings import Settings
from shared.status import RoundStatus
from shared.store import Store
from support import ROOT, clean_environment, free_port, running, wait_until

pytestmark = pytest.mark.functional

CONFIG = ["--block-hash=b", "--block-height=1", "--public-key=k", "--r-target=1.0"]

Poc = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def settings(shared_settings: Settings, shared_worker: Any) -> Settings:
    """One worker for all tests."""
    return shared_settings


@pytest.fixture
def poc(settings: Settings) -> Poc:
    """Run `poc` with these arguments."""
    env = clean_environment() | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
    }

    def poc(
        *args: str, stdout: IO[str] | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        if stdout is None and not variables:
            return preloaded.run(args, env=env, cwd=ROOT)
        return subprocess.run(
            [sys.executable, "-m", "worker.cli", *args],
            env=env | variables,
            cwd=ROOT,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    return poc


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command printed, and nothing else; it must have succeeded."""
    assert done.stderr == ""
    return answer_of(done)


def answer_of(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command printed beside its news; it must have succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def honest(block: str = "b") -> list[int]:
    """The first valid nonces of a block."""
    return [n for n in range(100) if fake_distance(block, "k", n) < 1.0][:20]


def batch_file(path: Path, nonces: list[int], dist: list[float]) -> str:
    """A batch as it comes from a callback."""
    batch = {"public_key": "k", "block_hash": "b", "block_height": 1}
    path.write_text(json.dumps(batch | {"nonces": nonces, "dist": dist}))
    return str(path)


def test_a_round_by_commands(poc: Poc, store: Store) -> None:
    """Init, generate, status, validate and stop show the round as it goes on."""
    opened = answer(poc("init", *CONFIG, "--replace", "--json"))
    assert (opened["state"], opened["r_target"]) == ("IDLE", 1.0)

    assert answer(poc("generate", "--json"))["task_id"]
    wait_until(lambda: store.status().total_valid, description="a valid nonce")
    seen = answer(poc("status", "--json"))
    assert (seen["round"]["state"], seen["round"]["round_id"]) == ("GENERATING", opened["round_id"])
    assert seen["round"]["valid_nonces"]
    assert [worker["name"] for worker in seen["workers"]] == ["shared@test"]

    ended = answer(poc("validate", "--json"))
    stopped = answer(poc("stop", "--json"))
    assert (ended["state"], stopped["state"]) == ("VALIDATING", "STOPPED")
    assert stopped["total_checked"] == ended["total_checked"]


def test_generate_waits_for_the_end(poc: Poc, store: Store, settings: Settings) -> None:
    """`--wait` follows the round until another terminal stops it."""
    command = [sys.executable, "-m", "worker.cli", "generate", *CONFIG, "--wait", "--json"]
    before = store.status().round_id
    options = ["--redis-url", settings.redis_url, "--namespace", settings.namespace]
    with subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE) as waiting:
        try:
            wait_until(
                lambda: (now := store.status()).round_id != before and now.total_valid,
                description="a valid nonce",
            )
            stopped = answer(poc("stop", "--json"))
            printed, _ = waiting.communicate(timeout=30)
        finally:
            waiting.kill()
    assert waiting.returncode == 0
    assert json.loads(printed)["total_checked"] == stopped["total_checked"]


def test_generate_until_a_count(poc: Poc, store: Store) -> None:
    """It waits for the end, which the workers bring about, and the final status has the count."""
    ended = answer_of(poc("generate", *CONFIG, "--replace", "--until-valid=20", "--json"))
    assert (ended["state"], ended["until_valid"]) == ("STOPPED", 20)
    assert ended["total_valid"] >= 20
    assert store.status().state == "STOPPED"


def test_generate_for_a_time(poc: Poc) -> None:
    """The table says how long it took; somebody else's stop would have been told."""
    done = poc("generate", *CONFIG, "--replace", "--seconds=0.3")
    assert done.returncode == 0
    assert "STOPPED" in done.stdout
    assert "somebody else" not in done.stderr


def test_generate_sets_an_end_and_goes(poc: Poc, store: Store) -> None:
    """Given --no-wait, nobody has to wait for the round to end."""
    args = ("--replace", "--until-valid=20", "--no-wait", "--json")
    begun = answer(poc("generate", *CONFIG, *args))
    wait_until(lambda: store.status().state == "STOPPED", description="the end")
    assert store.status().round_id == begun["round_id"]


def test_generate_ends_with_a_stop_by_somebody_else(
    poc: Poc, store: Store, client: PoCClient
) -> None:
    """It says that the round did not come to its own end; the status is as it was stopped."""
    before = store.status().round_id
    stopped: list[RoundStatus] = []

    def stop() -> None:
        wait_until(
            lambda: (now := store.status()).round_id != before and now.total_valid,
            description="a valid nonce",
        )
        stopped.append(client.stop())

    somebody = threading.Thread(target=stop)
    somebody.start()
    done = poc("generate", *CONFIG, "--replace", "--seconds=600", "--json")
    somebody.join()
    assert answer_of(done)["total_checked"] == stopped[0].total_checked
    assert "ended by somebody else" in done.stderr


def test_the_rounds_that_are_kept(poc: Poc) -> None:
    """The newest first, as a table and as JSON, with the time until which each is kept."""
    for name in ("listed1", "listed2"):
        answer(poc("init", *CONFIG, "--replace", f"--round-id={name}", "--json"))
    newest, older = answer(poc("rounds", "--newest=2", "--json"))
    assert (newest["round_id"], newest["state"], newest["kept_until"]) == ("listed2", "IDLE", 0)
    assert (older["round_id"], older["state"]) == ("listed1", "STOPPED")
    assert older["kept_until"] > older["updated_at"]
    shown = poc("rounds").stdout
    assert shown.index("listed2") < shown.index("listed1")


def test_an_honest_batch(poc: Poc, tmp_path: Path) -> None:
    """Exit status 0, and the verdict as JSON."""
    nonces = honest()
    batch = batch_file(tmp_path / "b.json", nonces, [fake_distance("b", "k", n) for n in nonces])
    verdict = answer(poc("validate", "--batch", batch, *CONFIG, "--json"))
    assert (verdict["n_invalid"], verdict["fraud_detected"]) == (0, False)


def test_a_forged_batch(poc: Poc, tmp_path: Path) -> None:
    """Given nonces that are claimed valid and are not, exit status 3 and FRAUD in the table."""
    forged = [n for n in range(100) if fake_distance("b", "k", n) > 1.2][:20]
    batch = batch_file(tmp_path / "b.json", forged, [0.1] * 20)
    done = poc("validate", "--batch", batch, *CONFIG)
    assert done.returncode == 3
    assert "FRAUD" in done.stdout
    assert "20 of 20 nonces" in done.stdout


def test_an_empty_batch(poc: Poc, tmp_path: Path) -> None:
    """Nothing is no fraud."""
    batch = batch_file(tmp_path / "b.json", [], [])
    assert answer(poc("validate", "--batch", batch, *CONFIG, "--json"))["fraud_detected"] is False


@pytest.mark.parametrize(
    ("status", "args", "message"),
    [
        (2, ["init", *CONFIG[:-1], "--r-target=3"], "config.r_target: Input should be less than"),
        (2, ["init", *CONFIG[:-1]], "a round's config lacks --r-target"),
        (2, ["init", *CONFIG, "--seq-len=1025"], "seq_len=1025: the model computes at most 1024"),
        (1, ["generate", "--round-id=another"], "another"),
        (2, ["validate", "--batch=/nowhere"], "/nowhere: can't be read: No such file"),
    ],
)
def test_a_refusal(status: int, args: list[str], message: str, poc: Poc) -> None:
    """One line on stderr, by the command or the worker; status 2 for what was asked wrongly."""
    done = poc(*args)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_status_tells_of_callbacks_that_wait_whichever_round_they_are_of(
    poc: Poc, client: PoCClient
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/poc"
    config = ALL_VALID.model_copy(update={"callback_url": nobody, "callback_deadline_s": 30})
    client.validate_batch(ProofBatch.of(config, [1], [0.5]), config).wait(20)
    assert json.loads(poc("status", "--json").stdout)["callbacks"]["waiting"] == 1
    assert "1 callbacks of all rounds wait, the oldest for" in poc("status").stdout


@pytest.mark.parametrize("args", [["status"], ["proofs"]])
def test_output_that_nobody_can_take(args: list[str], poc: Poc) -> None:
    """Given a full disk, one line says so."""
    with Path("/dev/full").open("w") as full:
        done = poc(*args, stdout=full)
    said = "error: the output can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_locale_that_lacks_our_signs(poc: Poc) -> None:
    """It gets others for them."""
    done = poc("doctor", PYTHONIOENCODING="ascii", POC_ENGINE="fake_engine:lod")
    assert "Traceback" not in done.stderr
    assert "? " in done.stdout


def test_more_proofs_than_were_printed(poc: Poc, store: Store) -> None:
    """What is left out is said, and how to have it."""
    poc("generate", *CONFIG, "--replace")
    wait_until(lambda: store.status().total_valid > 4, description="valid nonces")
    poc("stop")
    total = store.status().total_valid
    done = poc("proofs", "--count", "4")
    assert len(answer_of(done)["nonces"]) == 4
    assert done.stderr == f"printed 4 of {total:,} valid nonces; the next: --start 4\n"
    rest = answer(poc("proofs", "--start", "4"))
    assert len(rest["nonces"]) == total - 4


def test_a_watch_of_a_redis_that_is_not_there(poc: Poc, settings: Settings, tmp_path: Path) -> None:
    """It says so once, and waits; one that refuses is no use to wait for."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    command = [sys.executable, "-m", "worker.cli", "status", "--watch", "--json", "--redis-url"]
    log = tmp_path / "log"
    with running([*command, url], "trying again", log, env=clean_environment(), cwd=ROOT):
        time.sleep(2)
    assert log.read_text().count("trying again") == 1
    done = poc("status", "--watch", "--json", POC_REDIS_URL=settings.redis_url.replace("/0", "/99"))
    assert done.returncode == 1
    assert "Redis refuses" in done.stderr


def test_nobody_answers(poc: Poc) -> None:
    """Given a namespace without workers, a command says so after its timeout."""
    done = poc("stop", "--namespace=empty", "--timeout=0.5")
    assert done.returncode == 1
    assert "no worker of namespace empty answered poc.stop in 0.5 s" in done.stderr

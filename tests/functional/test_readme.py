"""What README and protocol.md tell their readers to type works as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from exactness import ALL_VALID
from fake_engine import fake_distance
from shared.config import PoCState
from shared.settings import Settings
from shared.store import Store
from support import ROOT, clean_environment, wait_until

pytestmark = pytest.mark.functional

README, PROTOCOL = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/protocol.md")
)

#: For machines without redis-cli, and outside the environment: the same words, sent by redis-py.
#: One reply a line: text as it is, as the shell needs it, and all else as JSON.
REDIS_CLI = """
redis-cli() { "$PYTHON" -c 'import json, sys, redis
option, url, *words = sys.argv[1:]
assert option == "-u", option
reply = redis.Redis.from_url(url, decode_responses=True).execute_command(*words)
print(reply if isinstance(reply, str) else json.dumps(reply))' "$@"; }
poc() { "$PYTHON" -m worker.cli "$@"; }
"""


def block(page: str, language: str, word: str) -> str:
    """The page's only code block of that language with that word in it, for our namespace."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (found,) = (each for each in blocks if word in each)
    return re.sub(r"\bpoc([.:])default\b", r"poc\1test", found)


def run(command: list[str], settings: Settings) -> str:
    """What `command` prints; it must succeed."""
    env = clean_environment() | {
        "POC_REDIS_URL": settings.redis_url,
        "POC_NAMESPACE": settings.namespace,
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_message_pushed_by_hand(settings: Settings, store: Store, start_worker: Any) -> None:
    """Pushed as it is shown, it is carried out, its key says so, and a stop ends it."""
    start_worker("w0", seconds=0.02)
    script = block(PROTOCOL, "sh", "LPUSH") + "\necho id=$id"
    printed, _, task = run(["bash", "-euc", REDIS_CLI + script], settings).rpartition("id=")
    assert '"PROGRESS"' in printed
    assert store.status().total_checked > 0
    run(["bash", "-euc", REDIS_CLI + block(PROTOCOL, "sh", "poc stop")], settings)
    get = f'{REDIS_CLI}redis-cli -u "$POC_REDIS_URL" GET celery-task-meta-{task}'
    wait_until(
        lambda: '"SUCCESS"' in run(["bash", "-euc", get], settings), description="the ticket's end"
    )


def test_the_short_message_of_the_readme(settings: Settings, start_worker: Any) -> None:
    """A stop, and its answer a second later."""
    start_worker("w0", seconds=0.02)
    printed = run(["bash", "-euc", REDIS_CLI + block(README, "sh", "LPUSH")], settings)
    assert '"SUCCESS"' in printed
    assert '"STOPPED"' in printed


def test_the_commands_that_read(
    settings: Settings, store: Store, client: Any, start_worker: Any
) -> None:
    """Given a round that holds the nonce they ask for, then each of them gives what it says."""
    # The first nonce of this node is the one on the page, and every nonce is valid.
    config = ALL_VALID.model_copy(update={"node_id": 4711, "node_count": 4712})
    start_worker("w0", seconds=0.02)
    client.generate(config)
    wait_until(lambda: store.status().total_valid, description="a valid nonce")
    stopped = client.stop()

    printed = run(["bash", "-euc", REDIS_CLI + block(PROTOCOL, "sh", "HSCAN")], settings)
    status, total_valid, distance, scanned = printed.splitlines()
    fields = json.loads(status)
    assert (fields["state"], fields["round_id"]) == ("STOPPED", stopped.round_id)
    assert int(total_valid) == int(fields["total_valid"]) == stopped.total_valid
    assert float(distance) == fake_distance("b", "k", 4711)
    _, pairs = json.loads(scanned)
    assert pairs
    for nonce, each in pairs.items():
        assert float(each) == fake_distance("b", "k", int(nonce))
    assert pairs["4711"] == distance


def test_the_example_in_python(settings: Settings, store: Store, start_worker: Any) -> None:
    """It runs to its end and judges its own nonces honest."""
    start_worker("w0", seconds=0.02)
    example = block(README, "python", "PoCClient").replace("seconds=3", "seconds=0.5")
    *found, counts, verdict = run([sys.executable, "-c", example], settings).splitlines()
    assert len(found) == int(counts.split()[1]) > 0
    assert verdict.split() == ["0", "1.0", "False"]
    assert store.status().state == PoCState.STOPPED

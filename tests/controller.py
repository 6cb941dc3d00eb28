"""What a controller of the network has: the address of a node, and a receiver for its callbacks.

It knows the node's HTTP contract and nothing else of it, so that any node can stand at the address.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from receiver import Answer, Receiver
from support import wait_until

#: Where nodes have their paths, behind a proxy and without one.
PREFIXES = ("/api/v1/inference/pow", "/api/v1/pow")

#: How the network's receiver refuses: before or after the phase, and for good.
NOT_NOW: Answer = (503, '{"error":"not in PoC generate phase"}')
NEVER: Answer = (400, '{"error":"invalid base64 in vector_b64"}')


@dataclass(frozen=True)
class Post:
    """A callback, and what its sender was answered."""

    path: str
    body: dict[str, Any]
    status: int

    @property
    def artifacts(self) -> list[tuple[int, str]]:
        """Nonces and vectors, if it has such."""
        return [(each["nonce"], each["vector_b64"]) for each in self.body.get("artifacts", [])]


#: What a block's callbacks are answered.
Rule = Callable[[dict[str, Any]], Answer]


class Inbox(Receiver):
    """Callbacks of a node, by the block that they are of; a block may have a rule of its own.

    Only its own path is known here: who sends to another one, be it by other escapes, gets 404.
    """

    def __init__(self, model: str, name: str, host: str, port: int) -> None:
        super().__init__(host=host, port=port)
        escaped = quote(quote(model, safe=""), safe="")
        self.path = f"/v2/poc-batches/{escaped}"
        self.base = f"http://{name}:{self.server_address[1]}{self.path}"
        self.rules: dict[str, Rule] = {}
        self._posts: dict[str, list[Post]] = defaultdict(list)

    def answer(self, path: str, body: bytes) -> Answer:
        """By the rule of its block, else 200."""
        base, _, kind = path.rpartition("/")
        if base != self.path:
            return 404
        said = json.loads(body)
        block = said["block_hash"]
        answer = self.rules.get(block, lambda _: 200)(said)
        status = answer[0] if isinstance(answer, tuple) else int(answer)
        self._posts[block].append(Post(kind, said, status))
        return answer

    def posts(self, block: str, kind: str = "generated") -> list[Post]:
        """The callbacks of a block so far, in their order."""
        with self.lock:
            return [post for post in self._posts[block] if post.path == kind]

    def taken(self, block: str) -> list[tuple[int, str]]:
        """The artifacts of a block that were answered with 200."""
        return _artifacts(post for post in self.posts(block) if post.status == 200)

    def refused(self, block: str) -> list[tuple[int, str]]:
        """Those that were answered with something else."""
        return _artifacts(post for post in self.posts(block) if post.status != 200)


class Controller:
    """It commands one node. Requests have no Content-Type, as those of the network's have none."""

    def __init__(self, client: httpx.Client, model: str, seq_len: int, inbox: Inbox) -> None:
        self._client, self.inbox = client, inbox
        self.model, self.seq_len = model, seq_len
        self._prefix = next(
            (each for each in PREFIXES if client.get(f"{each}/status").status_code != 404), ""
        )
        assert self._prefix, f"{client.base_url} has none of {PREFIXES}"

    def block(self, **fields: Any) -> dict[str, Any]:
        """The fields of a request about a block that nobody has heard of."""
        return {
            "block_hash": secrets.token_hex(32).upper(),
            "block_height": 7,
            "public_key": "02" + secrets.token_hex(32),
            "node_id": 2,
            "node_count": 5,
            "params": {"model": self.model, "seq_len": self.seq_len},
            "url": self.inbox.base,
        } | fields

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """A command."""
        return self._client.post(f"{self._prefix}/{path}", content=json.dumps(body).encode())

    def begin(self, block: dict[str, Any]) -> httpx.Response:
        """Begin a round."""
        return self.post("init/generate", block)

    def stop(self) -> httpx.Response:
        """End it."""
        return self.post("stop", {})

    def ask(self, block: dict[str, Any], nonces: Iterable[int], **fields: Any) -> httpx.Response:
        """A job that the answer waits for."""
        return self.post("generate", block | {"nonces": list(nonces), "wait": True} | fields)

    def job(self, id: str) -> httpx.Response:
        """How a job stands."""
        return self._client.get(f"{self._prefix}/generate/{id}")

    def status(self) -> dict[str, Any]:
        """What the node says of itself."""
        answer = self._client.get(f"{self._prefix}/status")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, doing: str) -> dict[str, Any]:
        """The status as soon as the node does that."""
        return wait_until(
            lambda: (found := self.status())["status"] == doing and found, 15, doing, every=0.1
        )

    def vectors(self, block: dict[str, Any], nonces: Sequence[int], **fields: Any) -> list[str]:
        """Those that the node computes for these nonces."""
        answer = self.ask(block, nonces, **fields)
        assert answer.status_code == 200, answer.text
        found = {each["nonce"]: each["vector_b64"] for each in answer.json()["artifacts"]}
        assert found.keys() == set(nonces)
        return [found[nonce] for nonce in nonces]


def _artifacts(posts: Iterable[Post]) -> list[tuple[int, str]]:
    return [each for post in posts for each in post.artifacts]

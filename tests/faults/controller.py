"""The controller of an act: it opens a round, keeps the node busy, and ends the round."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isnan
from random import Random
from typing import Any

from faults.commands import PATIENCE_S, Command, Courier, Refused
from faults.invariants import Broken, demand, distance
from faults.receiver import Receiver
from shared.client import PoCClient, Ticket
from shared.config import PoCConfig
from shared.data import ProofBatch
from shared.errors import CouldNotCompute, NoAnswer, PoCError, StoreUnavailable
from support import changed

#: Seconds that a ticket may be without an end, when it may have begun anew.
ANEW_S = 5.0
#: Errors that a loss of Redis may bring: the round is gone, or came back another.
AFTER_LOSS = ("RoundInProgress", "RoundNotInitialized", "RoundMismatch", "InvalidRequest")

#: A generation that somebody waits for.
Waiting = Ticket[Any] | Command


@dataclass
class Act:
    """What one act shall be; drawn from the seed."""

    number: int
    config: PoCConfig
    round_id: str
    #: init and then generate, instead of generate with a config.
    two_steps: bool
    #: Otherwise the next act's round takes its place.
    stops: bool
    seconds: float
    seed: int

    @classmethod
    def draw(cls, random: Random, number: int, receiver: Receiver, seconds: float) -> Act:
        node_id, node_count = random.choice([(0, 1), (2, 5)])
        name = f"act{number}"
        urls = [None, receiver.url(name), receiver.url(name), receiver.url(name, moved=True)]
        return cls(
            number=number,
            config=PoCConfig(
                block_hash=f"block{number}",
                block_height=number,
                public_key="faults",
                r_target=random.choice([2.0, 1.0, 0.3]),
                node_id=node_id,
                node_count=node_count,
                batch_size=random.choice([1, 8, 32, 100]),
                callback_url=random.choice(urls),
            ),
            round_id=f"{name}-{random.getrandbits(32):08x}",
            two_steps=random.random() < 0.4,
            stops=random.random() < 0.7,
            seconds=seconds,
            seed=random.getrandbits(32),
        )


@dataclass
class Controller:
    """Plays acts on a thread of its own, by raw messages and by the Python client in turns."""

    client: PoCClient
    courier: Courier
    count: Counter[str]
    #: Nothing may be lost in this phase: no error is excused by it.
    strict: bool = True
    broken: list[Broken] = field(default_factory=list)
    #: Generations that go on, the newest last.
    _tickets: list[Waiting] = field(default_factory=list)

    def play(self, act: Act) -> Play:
        """Begin an act."""
        return Play(self, act)


class Play:
    """One act under way. `finish` lets it come to its end."""

    def __init__(self, controller: Controller, act: Act) -> None:
        self._boss, self.act = controller, act
        self._random = Random(act.seed)
        self._count = controller.count
        self._finish = threading.Event()
        self._pool = ThreadPoolExecutor(4, "validation")
        self._validations: list[Future[None]] = []
        #: Final statuses of the generations that ended in this act.
        self.ends: list[dict[str, Any]] = []
        #: Ids of the validations that ended, in whatever way.
        self.validated: list[str] = []
        self._thread = threading.Thread(target=self._run, name=f"act {act.number}", daemon=True)
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        """Whether it has not come to its end."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """All is healed: come to an end."""
        self._finish.set()

    def _run(self) -> None:
        try:
            self._play()
        except Exception as error:  # noqa: BLE001 - see Broken.of
            self._boss.broken.append(Broken.of(error))
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _play(self) -> None:
        earlier = self._boss._tickets
        self._boss._tickets = []
        self._open()
        # This round took the place of the one before: whoever waited for that has its end.
        self._boss._tickets += self._await_ends(earlier)
        moves = (
            (self._validate, 5),
            (self._pause, 2),
            (self._turn, 1),
            (self._join, 1),
            (self._limit, 1),
            (self._refused_init, 1),
            (self._overtaken, 1),
            (self._boss.courier.poison, 2),
        )
        while not self._finish.wait(self._random.uniform(0.2, 0.8)):
            self._random.choices([m for m, _ in moves], [w for _, w in moves])[0]()
        if self.act.stops:
            self._boss.courier.deliver_late()
            gives_up_at = time.monotonic() + PATIENCE_S
            while True:
                self._stop()
                self._boss._tickets = left = self._await_ends(self._boss._tickets)
                if not left:
                    break
                ids = ", ".join(ticket.id for ticket in left)
                demand(time.monotonic() < gives_up_at, "every ticket ends", f"{ids} did not")
        for validation in self._validations:
            try:
                validation.result(timeout=PATIENCE_S)
            except TimeoutError:
                what = f"one of the validations {', '.join(self.validated)} does not"
                raise Broken("every ticket ends", what) from None

    # What opens and ends.

    def _open(self) -> None:
        act = self.act
        asked = {"config": _wire(act.config), "round_id": act.round_id, "replace": True}
        if act.two_steps:
            self._call("poc.init", asked)
            self._generate({"round_id": act.round_id})
        elif self._random.random() < 0.5:
            self._generate(asked)
        else:
            self._by_client(lambda client: client.generate(act.config, replace=True))

    def _stop(self) -> dict[str, Any]:
        if self._random.random() < 0.5:
            return self._call("poc.stop", {})
        found: dict[str, Any] = {}

        def stop(client: PoCClient) -> None:
            found.update(client.stop().model_dump(mode="json"))

        self._by_client(stop)
        return found

    def _generate(self, kwargs: dict[str, Any]) -> None:
        """Generate; if a loss took the round away, begin it anew."""
        command = self._boss.courier.send("poc.generate", kwargs)
        try:
            self._answer(command, ended=False)
        except Refused as refused:
            self._excuse(refused.name, str(refused))
            config = {"config": _wire(self.act.config), "replace": True}
            command = self._boss.courier.send("poc.generate", config)
            self._answer(command, ended=False)
        self._boss._tickets.append(command)

    def _by_client(self, call: Callable[[PoCClient], Any]) -> None:
        """A command by the Python client; while Redis refuses it is asked again, as a user does."""
        while True:
            try:
                found = call(self._boss.client)
            except StoreUnavailable:
                self._count["command: Redis refused, asked again"] += 1
                self._finish.wait(0.5)
            except PoCError as error:
                name = type(error).__name__
                self._excuse(
                    name, f"by the client, act {self.act.config.block_hash}: {name}: {error}"
                )
                return
            else:
                if isinstance(found, Ticket):
                    block = self.act.config.block_hash
                    self._boss.courier.journal.note(f"ticket {found.id} of the client, {block}")
                    self._boss._tickets.append(found)
                return

    def _call(self, task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        command = self._boss.courier.send(task, kwargs)
        try:
            return self._answer(command, ended=True)
        except Refused as refused:
            self._excuse(refused.name, str(refused))
            return {}

    def _answer(self, command: Command, *, ended: bool) -> Any:
        self._count["commands"] += 1
        try:
            return self._boss.courier.answer(command, ended=ended)
        except TimeoutError as error:
            what = "every ticket ends" if ended else "every command is answered"
            raise Broken(what, str(error)) from None

    def _excuse(self, name: str, message: str) -> None:
        demand(
            not self._boss.strict and name in AFTER_LOSS,
            "a command is carried out as it was sent",
            message,
        )
        self._count["command: its round was lost"] += 1

    def _await_ends(self, tickets: list[Waiting]) -> list[Waiting]:
        """Wait until all have ended; those that loss and repetition made begin anew are left."""
        return [ticket for ticket in tickets if not self._ended(ticket)]

    def _ended(self, ticket: Waiting) -> bool:
        # A ticket that a loss took away is sent again, and then waits for the next end.
        patience = PATIENCE_S if self._boss.strict else ANEW_S
        try:
            if isinstance(ticket, Command):
                status = self._boss.courier.answer(ticket, ended=True, patience=patience)
            else:
                status = ticket.wait(patience).model_dump(mode="json")
        except (TimeoutError, NoAnswer) as error:
            demand(not self._boss.strict, "every ticket ends", f"{ticket.id}: {error}")
            return False
        except (Refused, PoCError) as error:
            name = error.name if isinstance(error, Refused) else type(error).__name__
            self._excuse(name, f"ticket {ticket.id}: {name}: {error}")
        else:
            self.ends.append({"ticket": ticket.id} | status)
        self._count["tickets ended"] += 1
        return True

    # Moves.

    def _pause(self) -> None:
        """Stop, and go on where it was."""
        self._stop()
        self._generate({})

    def _turn(self) -> None:
        """To VALIDATING and back."""
        self._call("poc.validate", {})
        self._generate({})

    def _join(self) -> None:
        """A second ticket for the same generation."""
        self._generate({})

    def _limit(self) -> None:
        """To an end that the round comes to by itself, and on from there."""
        ends: list[dict[str, Any]] = [{"seconds": 0.3}, {"seconds": 2.0, "until_valid": 1}]
        self._generate(self._random.choice(ends))
        self._boss._tickets = self._await_ends(self._boss._tickets)
        self._count["rounds that ended by themselves"] += 1
        self._generate({})

    def _refused_init(self) -> None:
        """A round that may not take the place of one that generates."""
        other = self.act.config.model_copy(update={"block_hash": "other"})
        command = self._boss.courier.send("poc.init", {"config": _wire(other)})
        try:
            self._answer(command, ended=True)
        except Refused as refused:
            if refused.name != "RoundInProgress":
                self._excuse(refused.name, str(refused))
        else:
            demand(not self._boss.strict, "a running round is not replaced", command.id)
            self._generate({"config": _wire(self.act.config), "replace": True})

    def _overtaken(self) -> None:
        """A stop that comes before what opens its round."""
        self._count["message: out of order"] += 1
        round_id = f"late-{self._random.getrandbits(32):08x}"
        self._call("poc.stop", {"round_id": round_id})
        asked = {"config": _wire(self.act.config), "round_id": round_id, "replace": True}
        command = self._boss.courier.send("poc.generate", asked)
        try:
            self._answer(command, ended=False)
        except Refused as refused:
            holds = refused.name == "RoundMismatch" or not self._boss.strict
            demand(holds, "a stop that overtook holds", str(refused))
        else:
            demand(not self._boss.strict, "a stop that overtook holds", round_id)
            self._boss._tickets.append(command)

    def _validate(self) -> None:
        """A batch to be judged: honest, forged, or one that nobody can compute."""
        count = self._random.choice([0, 3, 50, 400])
        kind = self._random.choice(["honest", "honest", "forged", "NaN"])
        config = changed(self.act.config, node_id=0, node_count=1, r_target=2.0, batch_size=50)
        first = self._random.randrange(10**6)
        all_dist = {
            n: distance(config.block_hash, config.public_key, n) for n in range(first, first + 500)
        }
        good = {n: d for n, d in all_dist.items() if not isnan(d)}
        nonces = list(good)[:count]
        dist = [good[n] for n in nonces]
        if kind == "forged":
            config = changed(config, r_target=0.5)
            dist = [0.1] * count
        elif kind == "NaN" and count:
            nonces[0] = next(n for n, d in all_dist.items() if isnan(d))
        batch = ProofBatch.of(config, nonces, dist)
        judge = self._validate_raw if self._random.random() < 0.5 else self._validate_by_client
        expected = None if kind == "NaN" and count else [all_dist[n] for n in nonces]
        self._validations.append(self._pool.submit(judge, batch, config, expected))

    def _validate_raw(
        self, batch: ProofBatch, config: PoCConfig, expected: list[float] | None
    ) -> None:
        asked = {"batch": batch.model_dump(mode="json"), "config": _wire(config)}
        command = self._boss.courier.send("poc.validate", asked)
        self.validated.append(command.id)
        try:
            verdict = self._answer(command, ended=True)
        except Refused as refused:
            self._no_verdict(refused.name, str(refused), expected)
        else:
            dist, fraud = verdict["dist"], verdict["fraud_detected"]
            self._check_verdict(command.id, dist, fraud, config, expected)

    def _validate_by_client(
        self, batch: ProofBatch, config: PoCConfig, expected: list[float] | None
    ) -> None:
        self._count["commands"] += 1
        while True:
            try:
                ticket = self._boss.client.validate_batch(batch, config)
                self.validated.append(ticket.id)
                verdict = ticket.wait(PATIENCE_S)
            except StoreUnavailable:
                self._count["command: Redis refused, asked again"] += 1
                self._finish.wait(0.5)
            except PoCError as error:
                self._no_verdict(type(error).__name__, str(error), expected)
                return
            else:
                dist, fraud = verdict.dist, verdict.fraud_detected
                self._check_verdict(ticket.id, dist, fraud, config, expected)
                return

    def _check_verdict(
        self,
        task: str,
        dist: list[float],
        fraud: bool,
        config: PoCConfig,
        expected: list[float] | None,
    ) -> None:
        self._count["validations judged"] += 1
        right = expected is not None and dist == expected
        wrong = [n for n, (d, e) in enumerate(zip(dist, expected or [], strict=False)) if d != e]
        demand(
            right,
            "a verdict has the engine's distances",
            f"validation {task}: {len(dist)} distances, not the engine's at places {wrong[:5]} of "
            f"{'none' if expected is None else len(expected)}",
        )
        invalid = sum(d > config.r_target for d in dist)
        demand(
            fraud == (invalid > 0),
            "an honest node is not accused",
            f"validation {task}: {invalid} of {len(dist)} are invalid, fraud: {fraud}",
        )

    def _no_verdict(self, name: str, message: str, expected: list[float] | None) -> None:
        demand(name == CouldNotCompute.__name__, "every ticket ends", f"{name}: {message}")
        if expected is not None:
            # Three workers died on one chunk, or failed at it.
            demand(
                "did not finish it" in message or "asked to" in message,
                "a validation ends with a verdict",
                message,
            )
            self._count["validations given up"] += 1
        self._count["validations that nobody could compute"] += expected is None


def _wire(config: PoCConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)

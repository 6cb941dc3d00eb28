"""`poc simulate-epoch`: an epoch, and how it went, for people and for scripts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from shared.errors import ConfigError
from worker.tools.embedded import HOST
from worker.tools.network import here
from worker.tools.network.dapi import Chain
from worker.tools.network.epoch import Epoch, Outcome, Participant
from worker.tools.network.node import Credentials, Node
from worker.tools.show import out
from worker.tools.stage import SIGN_OF_LIFE_S, on_stage, say, say_so_far, signs_of_life

#: What the chain asks for.
SEQ_LEN = 1024


def run(
    seconds: float,
    urls: Sequence[str] = (),
    credentials: Credentials | None = None,
    *,
    seq_len: int = SEQ_LEN,
    host: str = HOST,
    as_json: bool = False,
) -> int:
    """An epoch with `seconds` of generating; 0 if it went as it must, else 1.

    Its nodes are those at `urls`, all of which must be honest; or some of this machine, of which
    the last one cheats. They are shown `credentials`, and reach this machine as `host`.
    """
    if not urls:
        here.require()

    def play(directory: Path, stack: ExitStack) -> int:
        if urls:
            chain, participants = _known(urls, credentials)
        else:
            chain, participants = here.start(directory, stack)
        for each in participants:
            stack.enter_context(each.taking_part(host))
        epoch = Epoch(chain, participants, seq_len if urls else here.SEQ_LEN)
        if not urls:
            pages = ", ".join(f"{each.node.url}/node/" for each in participants)
            say(f"the nodes' pages are {pages} while this runs")
        outcomes = epoch.run(lambda: _generate(seconds, participants))
        show = _show_json if as_json else _show
        show(epoch, outcomes, sum((each.dapi.answers for each in participants), Counter()))
        return 0 if all(each.as_it_must for each in outcomes) else 1

    return on_stage("poc-network", play)


def _known(urls: Sequence[str], credentials: Credentials | None) -> tuple[Chain, list[Participant]]:
    chain = Chain("")
    nodes = [Node(url, credentials) for url in urls]
    (url, times), *_ = Counter(each.url for each in nodes).most_common()
    if times > 1:
        raise ConfigError(f"--node {url} is given {times} times; each node takes part once")
    participants = [Participant(each.url, each, chain) for each in nodes]
    chain.model = participants[0].node.model()
    return chain, participants


def _generate(seconds: float, participants: Sequence[Participant]) -> None:
    say(f"generating for {seconds:g} s")
    began = time.monotonic()
    with signs_of_life("generating"):
        while (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(left, SIGN_OF_LIFE_S))
            stored = ", ".join(f"{len(each.dapi.artifacts):,}" for each in participants)
            say_so_far(began, f"artifacts that came: {stored}")


def _show(epoch: Epoch, outcomes: Sequence[Outcome], answers: Counter[str]) -> None:
    table = Table(title=f"block {epoch.height}", title_justify="left")
    # An address that is cut short would be that of several nodes.
    table.add_column("participant", overflow="fold")
    for column in ("artifacts", "computed", "porosity", "for", "against", "paid"):
        table.add_column(column, justify="right")
    table.add_column()
    for each in outcomes:
        table.add_row(
            each.name,
            f"{each.artifacts:,}",
            "?" if each.computed is None else f"{each.computed:,}",
            f"{each.porosity:.2f}",
            str(each.votes_for),
            str(each.votes_against),
            "yes" if each.paid else "no",
            Text("ok", "green") if each.as_it_must else Text("FAIL", "bold red"),
        )
    out.print(table)
    said = ", ".join(f"{times} x {answer}" for answer, times in sorted(answers.items()))
    out.print(Text(f"callbacks were answered: {said}", style="dim"), soft_wrap=True)


def _show_json(epoch: Epoch, outcomes: Sequence[Outcome], answers: Counter[str]) -> None:
    said = {
        "block_hash": epoch.block_hash,
        "block_height": epoch.height,
        "participants": [
            asdict(each)
            | {"porosity": each.porosity, "holes": each.holes, "as_it_must": each.as_it_must}
            for each in outcomes
        ],
        "answers": answers,
        "as_it_must": all(each.as_it_must for each in outcomes),
    }
    out.print(json.dumps(said), soft_wrap=True, highlight=False, markup=False)

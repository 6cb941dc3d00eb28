"""Settings come from `POC_*` variables, and every mistake is named in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.errors import ConfigError
from shared.settings import Settings, load_settings
from support import ROOT


def message(environ: dict[str, str]) -> str:
    """The text of the ConfigError that `environ` causes."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return str(caught.value)


def test_defaults_need_no_environment() -> None:
    """Everything has a default, and the queue follows from the namespace."""
    settings = load_settings({})
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.queue == "poc.default"


def test_variables_are_read_and_converted() -> None:
    """Text becomes numbers and booleans; what is not ours is left alone."""
    settings = load_settings(
        {"POC_API_PORT": "9000", "POC_RUN_CALLBACKS": "false", "POC_TILE": "4", "PATH": "/bin"}
    )
    assert (settings.api_port, settings.run_callbacks, settings.tile) == (9000, False, 4)
    assert load_settings({"POC_TILE": "auto"}).tile == load_settings({}).tile == "auto"


def test_a_given_environment_is_the_only_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process' own variables, wrong ones too, don't leak into it."""
    monkeypatch.setenv("POC_NAMESPACE", "outer")
    monkeypatch.setenv("POC_API_PORT", "not a port")
    assert load_settings({}).namespace == "default"
    assert Settings().namespace == "default"


def test_the_process_environment_is_the_default_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the variables of the process count."""
    monkeypatch.setenv("POC_NAMESPACE", "outer")
    assert load_settings().namespace == "outer"


def test_overrides_win_unless_none() -> None:
    """A command line option beats the variable; one that was not given does not."""
    settings = load_settings({"POC_NAMESPACE": "a", "POC_GPU": "1"}, namespace="b", gpu=None)
    assert (settings.namespace, settings.gpu) == ("b", "1")


def test_a_variable_set_to_nothing_counts_as_not_set() -> None:
    """Compose files pass `POC_MODEL=` for a model that was not chosen."""
    assert load_settings({"POC_MODEL": "", "POC_API_PORT": ""}) == load_settings({})


def test_an_unknown_variable_is_refused_with_the_nearest_known_one() -> None:
    """A misspelt setting is an error, not silence."""
    assert "POC_NAMESPCE (did you mean POC_NAMESPACE?)" in message({"POC_NAMESPCE": "x"})


def test_variables_of_compose_are_none_of_ours() -> None:
    """Given a shell that has read .env, the error says whose they are and how to be rid of them."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("*.sh")))
    ).replace("${user}", "WORKER")
    ours = {f"POC_{name.upper()}" for name in Settings.model_fields}
    theirs = sorted(set(re.findall(r"POC_[A-Z_]*[A-Z]", text)) - ours)
    assert "POC_REDIS_WORKER_PASSWORD" in theirs
    said = message(dict.fromkeys(theirs, "x"))
    assert said.startswith(f"{', '.join(theirs)}: ")
    assert said.endswith(f"; unset {' '.join(theirs)}")
    assert "did you mean" not in said


def test_an_unknown_override_is_refused_too() -> None:
    """The same for a program that builds settings."""
    with pytest.raises(ConfigError, match=r"POC_NAMESPCE \(did you mean POC_NAMESPACE"):
        load_settings({}, namespce="x")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POC_API_PORT", "x", "valid integer"),
        ("POC_API_PORT", "70000", "less than or equal to 65535; the default is 8080"),
        ("POC_LEASE_S", "nan", "finite number"),
        ("POC_LEASE_S", "inf", "finite number"),
        ("POC_DEVICE", "mps", "auto, cpu or cuda"),
        ("POC_DEVICE", "cuda:1", "which GPU, POC_GPU says"),
        ("POC_NAMESPACE", "a b", "letters, digits"),
        ("POC_NAMESPACE", "a\n", "letters, digits"),
        ("POC_ENGINE", "two words", "auto, transformers, vllm"),
        ("POC_LOG_LEVEL", "LOUD", "it is debug, info"),
        ("POC_GPU", "0,", "several with commas between them"),
        ("POC_RUN_CALLBACKS", "perhaps", "valid boolean"),
    ],
)
def test_a_bad_value_is_named_with_what_is_right(name: str, value: str, says: str) -> None:
    """One line: the variable, its value, what would do."""
    text = message({name: value})
    assert text.startswith(f"{name}={value!r}: ")
    assert says in text
    assert "\n" not in text


def test_options_of_vllm_are_a_json_object() -> None:
    """As in an environment variable; several GPUs are one setting."""
    settings = load_settings({"POC_VLLM_OPTIONS": '{"block_size": 32}', "POC_GPU": "0,GPU-1a"})
    assert settings.vllm_options == {"block_size": 32}
    assert settings.gpu == "0,GPU-1a"
    assert load_settings({}).vllm_options is None


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody wants to mend settings one restart at a time."""
    text = message({"POC_API_PORT": "x", "POC_TILE": "0"})
    assert "POC_API_PORT" in text
    assert "POC_TILE" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://me:s@cr%2Fe:t@h/0", "rediss://me:***@h/0?ssl_cert_reqs=required"),
        ("redis://m@e:secret@h/0", "redis://m@e:***@h/0"),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none"),
        (
            "sentinel://me:secret@a,b:1/n/2?sentinel_user=u&sentinel_password=secret",
            "sentinel://me:***@a,b:1/n/2?sentinel_user=u&sentinel_password=***",
        ),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    """What logs and screens show of the Redis URL."""
    assert load_settings({"POC_REDIS_URL": url}).safe_redis_url == shown


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POC_REDIS_URL", "http://:hunter2@h", "must begin with redis://"),
        ("POC_REDIS_URL", "me:hunter2@h", "must begin with redis://"),
        ("POC_REDIS_URL", "hunter2", "must begin with redis://"),
        ("POC_REDIS_URL", "hunter2://h/0", "must begin with redis://"),
        ("POC_REDIS_URL", "redis://me:hun:t@r/hunter2@h:port", "write / as %2F"),
        ("POC_REDIS_URL", "redis://:p?hunter2@h/0", "? as %3F"),
        ("POC_REDIS_URL", "redis://:p hunter2@h/0", "a blank as %20"),
        ("POC_REDIS_URL", "redis://hunter2@h:x/0", ":password without a user"),
        ("POC_REDIS_URL", "redis://hunter2@h/0", ":password without a user"),
        ("POC_REDIS_URL", "redis://me:hunter2@h:x/0", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h/hunter2", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h/9999999999", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h:hunter2/0", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h:99999/0", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h:0/0", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://[hunter2", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h/0?password=hunter2", "ssl_keyfile only"),
        ("POC_REDIS_URL", "redis://h/0?username=me&password=hunter2", "ssl_keyfile only"),
        ("POC_REDIS_URL", "redis://h/0?hunter2", "ssl_keyfile only"),
        ("POC_REDIS_URL", "redis://:hunter2@h/0?ssl_cert_reqs=none", "options are for rediss://"),
        ("POC_REDIS_URL", "rediss://h/0?ssl_cert_reqs=hunter2", "required, optional or none"),
        ("POC_REDIS_URL", "rediss://h/0?ssl_ca_certs=hunter2", "ssl_ca_certs must name a file"),
        ("POC_REDIS_URL", "redis://a,b/0", "number-of-a-database"),
        ("POC_REDIS_URL", "redis://h/0?sentinel_password=hunter2", "ssl_keyfile only"),
        ("POC_REDIS_URL", "sentinel://:hunter2@a,b", "host:port/name-of-the-primary/number-of"),
        ("POC_REDIS_URL", "sentinel://:hunter2@a,,b/n", "host:port/name-of-the-primary/number-of"),
        ("POC_REDIS_URL", "sentinel://a:0/n", "host:port/name-of-the-primary/number-of"),
        ("POC_REDIS_URL", "sentinel://a/n/hunter2", "name-of-the-primary/number-of-a-database"),
        ("POC_REDIS_URL", "sentinel://a/n?sentinel_password=hunt@er2", "behind a ? write @ as %40"),
        ("POC_REDIS_URL", "sentinel://a/n m", "name-of-the-primary/number-of-a-database"),
        ("POC_REDIS_URL", "sentinel://a/n?password=hunter2", "ssl_keyfile only"),
        ("POC_REDIS_URL", "sentinel://:hunter2@a/n?ssl_cert_reqs=none", "are for sentinels://"),
        ("POC_REDIS_URL", "redis://:hunter2@ü..x/0", "between the dots of its host"),
        ("POC_REDIS_URL", "redis://h." + 9 * "hunter2-" + "/0", "between the dots of its host"),
        ("POC_REDIS_URL_FILE", "hunter2", "can't be read: No such file"),
        ("POC_API_TOKENS", "hunter2", "each token must be"),
        ("POC_API_TOKENS", "a-good-token-of-some-length,hunter2", "each token must be"),
        ("POC_API_TOKENS_FILE", "hunter2", "can't be read: No such file"),
        ("POC_CALLBACK_SECRET", "hunter2", "must be base64"),
        ("POC_CALLBACK_ALLOW", "a.example,http://me:hunter2@b", "entry 2 is no host"),
        ("POC_CALLBACK_ALLOW", "me:hunter2@b", "entry 1 is no host"),
        ("POC_CALLBACK_ALLOW", "10.0.0.0/8,10.2.3", "entry 2 is no address or network"),
        ("POC_VLLM_OPTIONS", '{"hf_token": "hunter2"', "Invalid JSON"),
        ("POC_VLLM_OPTIONS", "hunter2", "Invalid JSON"),
        ("POC_VLLM_OPTIONS", '["hunter2"]', "valid dictionary"),
    ],
)
def test_an_error_hides_a_secret_too(name: str, value: str, says: str) -> None:
    """It says what is wrong without a word of the value: a wrong one is a secret all the same."""
    text = message({name: value})
    assert text.startswith(f"{name}: ")
    assert says in text
    assert "hunter2" not in text
    assert "\n" not in text


def test_an_object_made_without_load_settings_hides_it_too() -> None:
    """A program that builds the class itself has pydantic's own error."""
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url="redis://h/hunter2", vllm_options='{"hf_token": "hunter2"')
    assert "hunter2" not in str(caught.value)


SECRETS = {
    "POC_REDIS_URL": "redis://me:hunter2@h/0",
    "POC_API_TOKENS": "hunter2-hunter2-hunter2",
    "POC_CALLBACK_SECRET": "aHVudGVyMi1odW50ZXIyLWh1bnRlcjIt",
    "POC_CALLBACK_ALLOW": "hunter2.example",
    "POC_VLLM_OPTIONS": '{"hf_token": "hunter2"}',
}


def test_settings_show_no_secret() -> None:
    """Whoever logs or prints the object gives nothing away."""
    settings = load_settings(SECRETS)
    for shown in (repr(settings), str(settings), repr(vars(settings)["api_tokens"])):
        assert "hunter2" not in shown
        assert SECRETS["POC_CALLBACK_SECRET"] not in shown


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_in_a_file(name: str, tmp_path: Path) -> None:
    """The end of a line, which an editor puts there, does not count; an option counts more."""
    path = tmp_path / "secret"
    path.write_text(SECRETS[name] + "\n")
    assert load_settings({f"{name}_FILE": str(path)}) == load_settings({name: SECRETS[name]})
    assert load_settings({name: "", f"{name}_FILE": ""}) == load_settings({})
    both = {name: SECRETS[name], f"{name}_FILE": str(path)}
    assert message(both) == f"{name} and {name}_FILE are both set: unset one"
    assert "No such file" in message({f"{name}_FILE": str(tmp_path / "none")})


def test_an_option_counts_more_than_a_file(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("redis://file/0")
    settings = load_settings({"POC_REDIS_URL_FILE": str(path)}, redis_url="redis://option/0")
    assert settings.redis_url == "redis://option/0"


def test_only_secrets_have_files() -> None:
    assert "unknown settings: POC_MODEL_FILE" in message({"POC_MODEL_FILE": "/etc/passwd"})


def test_settings_are_frozen() -> None:
    """What was read at the start holds until the end."""
    with pytest.raises(ValidationError):
        load_settings({}).namespace = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"POC_HEARTBEAT_S": "20"}, "POC_HEARTBEAT_S=20: at most half of POC_LEASE_S=30"),
    ],
)
def test_settings_that_contradict_each_other_name_both(environ: dict[str, str], says: str) -> None:
    """Each is fine by itself."""
    assert message(environ).startswith(says)


@pytest.mark.parametrize("sign", "/?#[")
def test_a_sign_that_ends_a_password_is_to_be_written_as_a_number(sign: str) -> None:
    """Each user of the URL would cut it elsewhere."""
    assert f"as %{ord(sign):02X}" in message({"POC_REDIS_URL": f"redis://:p{sign}w@h:6379/0"})


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_a_log_level_may_be_written_as_one_likes(level: str) -> None:
    assert load_settings({"POC_LOG_LEVEL": level}).log_level == "DEBUG"

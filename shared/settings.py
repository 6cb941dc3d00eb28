"""Settings: one frozen object, built once from `POC_*` variables and passed in.

Every field is a variable (`redis_url` is `POC_REDIS_URL`) and, where a command needs it, an
option of the same name (`--redis-url`). An unknown `POC_*` variable is an error, since a
misspelt setting that is silently ignored costs a night of wrong results. A variable that is
set to nothing counts as not set, since compose files and unit files can't leave one out.

What may hold a secret is marked once, by `repr=False`. Nothing of its value is ever shown, not by
the object and not by an error, whose message must do without it. And it may be in a file:
`POC_REDIS_URL_FILE=/run/secrets/redis_url` stands for what is in that.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PlainValidator,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from shared.config import MAX_BATCH_SIZE, MAX_SECONDS, MAX_VALID
from shared.errors import ConfigError
from shared.receivers import Receivers
from shared.redis_url import RedisUrl
from shared.signature import KEY_BYTES, read_secret

PREFIX = "POC_"

#: Sequences in one forward at most.
MOST_TOGETHER = 4096

#: Positions of each nonce in the functional check, whose distances all workers must agree on.
CHECK_LEN = 64

#: What `poc worker` takes as the GPU to run a worker on each that there is.
EVERY_GPU = "all"

#: A namespace is part of key and queue names, so only characters that need no quoting there.
Namespace = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _redis_url(url: str) -> str:
    return str(RedisUrl.parse(url))


#: What RFC 6750 lets a bearer token consist of, but long enough not to be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,256}=*")


def _tokens(text: SecretStr) -> SecretStr:
    if not all(_TOKEN.fullmatch(token) for token in text.get_secret_value().split(",")):
        raise ValueError(
            "each token must be 16 to 256 letters, digits and -._~+/ with commas between tokens; "
            "make one with: openssl rand -hex 32"
        )
    return text


def tokens_of(setting: SecretStr | None) -> frozenset[str]:
    """The tokens of a setting, which have commas between them."""
    return frozenset(filter(None, setting.get_secret_value().split(",")) if setting else ())


def _secret(text: SecretStr) -> SecretStr:
    read_secret(text.get_secret_value())
    return text


def _key(text: SecretStr) -> SecretStr:
    read_secret(text.get_secret_value(), KEY_BYTES)
    return text


def _upper(text: object) -> object:
    return text.upper() if isinstance(text, str) else text


def _lower(text: object) -> object:
    return text.lower() if isinstance(text, str) else text


def _tile(value: object) -> Literal["auto"] | int:
    if value == "auto":
        return "auto"
    # As a whole, since each half of a union would say what is wrong in its own words.
    if not re.fullmatch(r"\d{1,4}", str(value)) or not 1 <= int(str(value)) <= MOST_TOGETHER:
        raise ValueError(f"should be auto, or a number of sequences from 1 to {MOST_TOGETHER}")
    return int(str(value))


def _receivers(text: str) -> str:
    Receivers.of(text)
    return text


#: Variables of docker-compose.yml and deploy/ that no process of ours reads.
_COMPOSE = re.compile(
    r"POC_(REDIS_[A-Z]+_PASSWORD|REDIS_PORT|MODELS_DIR|(FLOWER|DOCKER|PROMETHEUS|GRAFANA|PROXY)_[A-Z]+)"
)


class Settings(BaseModel):
    """What an operator can set. Field descriptions are what `poc doctor` and the docs show.

    Built by `load_settings`; the class alone takes only what it is given.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=True,
    )

    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # many hand it on, so it is no SecretStr
        description="Redis that holds broker, results and rounds: redis:// or rediss://, or "
        "sentinel://host,host/name for the primary that Sentinels name",
    )
    namespace: Namespace = Field(
        "default",
        description="one node: its rounds, keys and queue; letters, digits, dots, dashes and "
        "underscores, at most 64; several may share a Redis",
    )
    engine: str = Field(
        "auto",
        description="auto, transformers, vllm, or module:factory for an engine of your own",
        pattern=r"^([a-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
    )
    model: str | None = Field(None, description="a model directory or hub id; no default")
    dtype: str = Field(
        "auto",
        description="auto, float32, bfloat16 or float16",
        pattern=r"^(auto|float32|b?float16)$",
    )
    device: str = Field(
        "auto",
        description="auto, cpu or cuda; which GPU, POC_GPU says",
        pattern=r"^(auto|cpu|cuda)$",
    )
    gpu: str | None = Field(
        None,
        description="GPU index or UUID that this worker is pinned to; several with commas between "
        "them for POC_TENSOR_PARALLEL, or all, and `poc worker` starts a worker for each GPU",
        pattern=r"^[\w-]+(,[\w-]+)*$",
    )
    scheme: str = Field(
        "distance",
        description="the scheme that vllm is made ready for at the start: distance, or artifact. "
        "Rounds of the other are computed as well; their first batch waits for a compiler",
        pattern=r"^[a-z_]+$",
    )
    tile: Annotated[Literal["auto"] | int, PlainValidator(_tile)] = Field(
        "auto",
        description="sequences in one forward; auto is 8 on a CPU and 32 on a GPU, where vllm "
        "takes more if that is faster, unless it serves requests. Pin it where profiles must be "
        "equal between nodes",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="vllm: GPUs that the model is spread over"
    )
    max_model_len: int | None = Field(
        None,
        ge=CHECK_LEN,
        description="vllm: positions of a sequence at most, as many as the functional check has at "
        "least; default the model's",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="vllm: share of the GPU's memory that the worker takes"
    )
    quantization: str | None = Field(
        None, description="vllm: how to quantize the weights, such as fp8", pattern=r"^[\w-]+$"
    )
    vllm_options: Json[dict[str, Any]] | None = Field(
        None,
        repr=False,
        description="vllm: JSON object of further engine arguments, as vLLM names them",
    )
    serve_host: str = Field(
        "127.0.0.1", description="vllm: address that it serves its OpenAI-compatible API on"
    )
    serve_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="vllm: port of that API, which is off without one; with POC_GPU=all the first "
        "worker's, and the others have those after it",
    )
    model_fingerprint: str | None = Field(
        None, description="the only model fingerprint that workers may have"
    )
    model_distances: Json[Annotated[list[float], Field(min_length=8, max_length=8)]] | None = Field(
        None,
        description="JSON list of what the functional check must give, as a healthy worker logs "
        "it; by default what the first worker with the model gave",
    )
    check_every_s: float = Field(
        60.0, ge=0.1, le=86400, description="seconds between two functional checks of the device"
    )
    worker_name: str | None = Field(
        None,
        description="name in status and Flower, its own; default poc-<pid>-<random>@<host>",
        pattern=r"^[^\s@]+(@[^\s@]+)?$",
    )
    lease_s: float = Field(30.0, ge=0.5, le=3600, description="a claim's life without a heartbeat")
    heartbeat_s: float = Field(2.0, ge=0.1, le=60, description="seconds between heartbeats")
    batch_deadline: float = Field(
        300.0,
        gt=0,
        le=86400,
        description="seconds without progress after which a worker counts as hung: it frees its "
        "claims and ends. Set it above the time of two tiles, since one waits behind another, "
        "and above the 15 s that a silent Redis may take",
    )
    load_deadline: float = Field(
        3600.0,
        gt=0,
        le=86400,
        description="seconds that loading the model may take, its download included, until the "
        "worker counts as hung and ends",
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="attempts before a batch is marked failed"
    )
    max_valid: int = Field(
        1_000_000, ge=1, le=MAX_VALID, description="valid nonces a round may hold"
    )
    keep_rounds_s: int = Field(
        86_400, ge=1, le=31_536_000, description="seconds an ended round or validation is kept"
    )
    command_memory_s: int = Field(
        86_400,
        ge=60,
        le=31_536_000,
        description="seconds a command's outcome is remembered, and its task's result is kept",
    )
    callback_timeout_s: float = Field(
        10.0, gt=0, le=300, description="seconds one delivery may take"
    )
    run_callbacks: bool = Field(True, description="whether `poc worker` also delivers callbacks")
    callback_allow: Annotated[str, AfterValidator(_receivers)] | None = Field(
        None,
        repr=False,  # a URL in the place of a host may have a password
        description="the only hosts that callbacks go to: names, *.names, addresses and networks, "
        "with commas between; default all but link-local and metadata addresses",
    )
    callback_secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        None,
        repr=False,
        description="base64 of 24 to 64 random bytes that callbacks are signed with",
    )
    callback_tls_cert: str | None = Field(
        None,
        description="file with the certificate chain, in PEM, that is shown to receivers which ask "
        "for one",
    )
    callback_tls_key: str | None = Field(None, description="file with the key of that certificate")
    callback_tls_ca: str | None = Field(
        None,
        description="file with the authorities, in PEM, that receivers must have their "
        "certificates of; default the public ones",
    )
    receipt_key: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        None,
        repr=False,
        description="base64 of 32 random bytes that `poc receipt` signs with (Ed25519)",
    )
    api_host: str = Field("127.0.0.1", description="address that the status API listens on")
    api_port: int = Field(8080, ge=0, le=65535, description="port of the status API")
    api_root_path: str = Field(
        "",
        description="path below which a proxy shows the status API, such as /poc",
        pattern=r"^((/[\w.~-]+)+|)$",
    )
    api_tokens: Annotated[SecretStr, AfterValidator(_tokens)] | None = Field(
        None,
        repr=False,
        description="bearer tokens that the status API asks for, with commas between; without any "
        "it listens on loopback only",
    )
    api_public: bool = Field(
        False, description="whether the status API may listen beyond loopback without tokens"
    )
    api_rate: int = Field(
        100, ge=1, le=1_000_000, description="requests a second that one address may send the API"
    )
    gateway_host: str = Field("127.0.0.1", description="address that the gateway listens on")
    gateway_port: int = Field(8100, ge=0, le=65535, description="port of the gateway")
    gateway_tokens: Annotated[SecretStr, AfterValidator(_tokens)] | None = Field(
        None,
        repr=False,
        description="bearer tokens of those who may command by the gateway, with commas between; "
        "without any, and without client certificates, it listens on loopback only",
    )
    gateway_read_tokens: Annotated[SecretStr, AfterValidator(_tokens)] | None = Field(
        None,
        repr=False,
        description="bearer tokens of those who may only read by it",
    )
    gateway_public: bool = Field(
        False, description="whether the gateway may listen beyond loopback without tokens"
    )
    gateway_rate: int = Field(
        100, ge=1, le=1_000_000, description="requests a second that one address may send it"
    )
    gateway_tls_cert: str | None = Field(
        None, description="file with the gateway's certificate chain, in PEM, for https"
    )
    gateway_tls_key: str | None = Field(None, description="file with the key of that certificate")
    gateway_tls_client_ca: str | None = Field(
        None,
        description="file with the authorities, in PEM, of which clients must have a certificate",
    )
    gateway_model: str | None = Field(
        None,
        description="the model's name on the network; default what the workers were given",
    )
    gateway_seq_len: int | None = Field(
        None,
        ge=1,
        description="positions of a forward on the network, and any other number is refused; "
        "default what is asked for",
    )
    gateway_batch_size: int = Field(
        32, ge=1, le=MAX_BATCH_SIZE, description="nonces in one batch of the gateway's rounds"
    )
    gateway_round_s: float = Field(
        3600.0,
        gt=0,
        le=MAX_SECONDS,
        description="seconds after which a round that came by the gateway and that nobody stopped "
        "ends, so that it can't be taken for a new one",
    )
    gateway_replace: bool = Field(
        False,
        description="whether a round of another block, key or node ends the one that is "
        "generating; by default it is refused",
    )
    gate_chat: bool = Field(
        False,
        description="whether a proxy that asks the gateway is told to refuse chat while a round "
        "is generating",
    )
    log_level: Annotated[str, BeforeValidator(_upper)] = Field(
        "INFO",
        description="debug, info, warning, error or critical",
        pattern=r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$",
    )
    log_format: Annotated[str, BeforeValidator(_lower)] = Field(
        "text",
        description="text, or json: an object a line, for what collects logs",
        pattern=r"^(text|json)$",
    )

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(
                f"POC_HEARTBEAT_S={self.heartbeat_s:g}: at most half of POC_LEASE_S="
                f"{self.lease_s:g}, or live workers lose their claims"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        for part in ("gateway", "callback"):
            own = [f"{part}_tls_cert", f"{part}_tls_key"]
            if len([name for name in own if getattr(self, name)]) == 1:
                raise ValueError(f"{' and '.join(map(_variable, own))}: set both, or neither")
        if self.gateway_tls_client_ca and not self.gateway_tls_cert:
            raise ValueError(
                "POC_GATEWAY_TLS_CLIENT_CA: asks clients for certificates, which needs TLS: set "
                "POC_GATEWAY_TLS_CERT and POC_GATEWAY_TLS_KEY"
            )
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        both = tokens_of(self.gateway_tokens) & tokens_of(self.gateway_read_tokens)
        if both:
            raise ValueError(
                "POC_GATEWAY_READ_TOKENS: a token in it is one of POC_GATEWAY_TOKENS, too, so "
                "whoever may read could command; take another"
            )
        return self

    @classmethod
    def engine_of_field(cls, name: str) -> str:
        """The engine that a setting is for alone, as its description begins; empty for all."""
        return _OF_AN_ENGINE.get(name, "")

    @classmethod
    def of_other_engines(cls, engine: str) -> set[str]:
        """The settings that `engine` would silently ignore."""
        return {name for name, owner in _OF_AN_ENGINE.items() if owner != engine}

    @property
    def worker_lives_s(self) -> float:
        """Seconds that a worker, and its hold on the namespace's model, last without heartbeat."""
        return max(30.0, 5 * self.heartbeat_s)

    @property
    def queue(self) -> str:
        """The Celery queue that this namespace's workers consume."""
        return f"poc.{self.namespace}"

    @property
    def redis(self) -> RedisUrl:
        """The Redis URL in its parts."""
        return RedisUrl.parse(self.redis_url)

    @property
    def safe_redis_url(self) -> str:
        """The Redis URL with its passwords hidden, for logs and screens."""
        return self.redis.safe


#: The settings that are for one engine alone: what they are begins with its name.
_OF_AN_ENGINE = {
    name: owner[1]
    for name, field in Settings.model_fields.items()
    if (owner := re.match(r"(\w+): ", field.description or ""))
}

#: The settings that may hold a secret: never shown, and may be in a file.
HIDDEN = tuple(name for name, field in Settings.model_fields.items() if not field.repr)


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Build the settings from `environ` (default: the process') with `overrides` on top.

    An override that is `None` means "not given"; any other counts more than a file. Raises
    `ConfigError` that names the variable, what is wrong and what would be right; for an unknown
    name, the nearest known one.
    """
    source = os.environ if environ is None else environ
    given: dict[str, Any] = {
        name: value for name, value in source.items() if name.startswith(PREFIX)
    }
    for name, value in overrides.items():
        if value is not None:
            given[_variable(name)] = value
            given.pop(f"{_variable(name)}_FILE", None)
    known = {_variable(name): name for name in Settings.model_fields}
    for variable in map(_variable, HIDDEN):
        if path := given.pop(f"{variable}_FILE", ""):
            if given.get(variable):
                raise ConfigError(f"{variable} and {variable}_FILE are both set: unset one")
            given[variable] = _read(f"{variable}_FILE", path)
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(_none_of_ours(unknown, list(known)))
    try:
        return Settings(**{known[name]: value for name, value in given.items() if value != ""})
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(each) for each in error.errors())) from None


def environment(**overrides: Any) -> dict[str, str]:
    """The environment in which `load_settings` gives a child what it gives us with `overrides`."""
    environ = dict(os.environ)
    for name, value in overrides.items():
        if value is not None:
            environ[_variable(name)] = str(value)
            environ.pop(f"{_variable(name)}_FILE", None)
    return environ


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _read(variable: str, path: str) -> str:
    """The secret in a file, without the line's end that editors put behind it."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        # Without the path: the secret itself may have been put there.
        raise ConfigError(f"{variable}: can't be read: {reason}") from None


def _none_of_ours(unknown: list[str], known: list[str]) -> str:
    if theirs := [name for name in unknown if _COMPOSE.fullmatch(name)]:
        return (
            f"{', '.join(theirs)}: no settings, but for Docker Compose and deploy/ alone; "
            f"unset {' '.join(theirs)}"
        )
    hints = ", ".join(_with_hint(name, known) for name in unknown)
    return f"unknown settings: {hints}; unset them or mend the spelling"


def _with_hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _sentence(error: ErrorDetails) -> str:
    """`POC_API_PORT='x': what is wrong; what would be right`, on one line; 'x' unless secret."""
    if not error["loc"]:  # it concerns two fields, and says which
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    if error["type"] == "string_pattern_mismatch":
        # The pattern itself helps nobody; the description says what is allowed.
        wrong = f"not allowed; it is {field.description}"
    else:
        wrong = error["msg"].replace("Input should", "should").removeprefix("Value error, ")
        wrong += "" if field.default is None else f"; the default is {field.default}"
    shown = "" if name in HIDDEN else f"={error['input']!r:.100}"
    return f"{_variable(name)}{shown}: {wrong}"


def table() -> str:
    """All settings as a Markdown table, as docs/settings.md has it."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = f"`{shown}`" if (shown := default_of(name)) else ""
        rows.append(f"| `{_variable(name)}` | {default} | {field.description} |")
    return "\n".join(rows)


def default_of(name: str) -> str:
    """The default of a setting, as one would write it; empty without one."""
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default is None else str(default)


if __name__ == "__main__":
    print(table())  # noqa: T201

"""Options made from the settings and from the fields of a config, so that they never differ."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from shared.config import MAX_BATCH_SIZE, PoCConfig
from shared.errors import ConfigError, InvalidRequest
from shared.schemes import DEFAULT, SCHEMES, terms_of
from shared.settings import PREFIX, Settings, default_of, load_settings

Command = Callable[..., None]

#: What each field of a config means, for those who type it; schemes describe their own.
CONFIG_HELP = {
    "block_hash": "block that the inputs are derived from",
    "block_height": "height of that block",
    "public_key": "the node's key: part of every input",
    "node_id": "which of node-count nodes this is, from 0",
    "node_count": "nodes that share the nonces",
    "batch_size": "nonces in one batch",
    "seq_len": "positions of one forward",
    "callback_url": "where found nonces and verdicts are posted",
    "callback_deadline_s": "seconds that a callback is tried for",
    "strong_rng": "draw inputs from all 256 bits of the seed",
    "scheme": f"what a proof is: {' or '.join(SCHEMES)}",
}

#: The settings that say what is computed with.
ENGINE = (
    "engine",
    "model",
    "dtype",
    "device",
    "gpu",
    "tile",
    "tensor_parallel",
    "max_model_len",
    "gpu_memory_utilization",
    "quantization",
    "vllm_options",
)

#: Each field of a config as the schemes have it, by their names; "" stands for all of them.
CONFIG_FIELDS: dict[str, dict[str, FieldInfo]] = {
    name: {"": field} for name, field in PoCConfig.model_fields.items() if name != "terms"
} | {"scheme": {"": FieldInfo(annotation=str, default=DEFAULT)}}
for _scheme in SCHEMES.values():
    for _name, _field in _scheme.model_fields.items():
        if _field.description:
            CONFIG_HELP.setdefault(_name, _field.description)
            CONFIG_FIELDS.setdefault(_name, {})[_scheme.name] = _field

#: Fields of a config that only a round needs.
_OF_A_ROUND = ("block_height", "node_id", "node_count", "callback_url", "callback_deadline_s")
#: A block and a key that nobody has, where any will do.
_ANY_BLOCK = {"block_hash": "selfcheck", "block_height": 0, "public_key": "selfcheck"}

#: Exit status of what would be, or is, called a fraud.
FRAUD = 3


def known_scheme(name: str) -> str:
    """The name of a scheme. Raises `ConfigError` for an unknown one."""
    try:
        terms_of(name)
    except ValueError as error:
        raise ConfigError(f"--scheme: {error}") from None
    return name


Scheme = Annotated[
    str,
    typer.Option(
        metavar="<name>", help=f"{CONFIG_HELP['scheme'].capitalize()}.", callback=known_scheme
    ),
]
SeqLen = Annotated[int, typer.Option(min=1, metavar="<int>", help="Positions of one forward.")]
BatchSize = Annotated[
    int, typer.Option(min=1, max=MAX_BATCH_SIZE, metavar="<int>", help="Nonces in one batch.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Timeout = Annotated[
    float,
    typer.Option(min=0.1, metavar="<seconds>", help="How long a worker has to answer."),
]
NewRoundId = Annotated[
    str | None, typer.Option(help="Id of the new round; or of the current one, without a config.")
]
Replace = Annotated[bool, typer.Option("--replace", help="End a round that is generating.")]


def takes_settings(
    *names: str, build: Callable[..., Any] = load_settings
) -> Callable[[Command], Command]:
    """Give a command the options `names` and, as `settings`, what `build` makes of them."""

    def said(name: str) -> str:
        default = f"; default {shown}" if (shown := default_of(name)) else ""
        return f"{Settings.model_fields[name].description} ({PREFIX}{name.upper()}{default})"

    options = [
        _option(name, Settings.model_fields[name].annotation, said(name), "Settings")
        for name in names
    ]
    return _gathers("settings", options, lambda given: build(**given))


def takes_config(command: Command) -> Command:
    """Give a command an option per field of a config and, as `config`, the fields or None."""
    return _gathers("config", _config_options(CONFIG_FIELDS, _with_default), _config)(command)


def takes_network(command: Command) -> Command:
    """Give a command the options of a config that a network has, whatever the block and the key."""
    names = (each for each in CONFIG_FIELDS if each not in _OF_A_ROUND)

    def said(name: str) -> str:
        return f"{CONFIG_HELP[name]} (any)" if name in _ANY_BLOCK else _with_default(name)

    return _gathers("config", _config_options(names, said), _config_of_any_block)(command)


def _config_options(names: Iterable[str], said: Callable[[str], str]) -> list[inspect.Parameter]:
    file = Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="JSON object of these, - for standard input; options count more.",
            rich_help_panel="Config of the round",
        ),
    ]
    option = inspect.Parameter(
        "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=file
    )
    return [option, *(_of_config(name, said(name)) for name in names)]


def _of_config(name: str, text: str) -> inspect.Parameter:
    """The option of a field of a config; the first scheme that has it gives its type."""
    scheme, field = next(iter(CONFIG_FIELDS[name].items()))
    panel = f"Of the scheme {scheme}" if scheme else "Config of the round"
    return _option(name, field.annotation, text, panel)


def read_text(path: str) -> str:
    """The file `path`, or what is on standard input for -."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path}: is not UTF-8") from None


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in the file `path`, or on standard input for -."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"{path}: holds a {type(data).__name__}, not a JSON object")
    return data


def _config(given: Mapping[str, Any]) -> dict[str, Any] | None:
    options = {name: value for name, value in given.items() if value is not None}
    file = options.pop("config_file", None)
    if not file and not options:
        return None
    config = (read_json(file) if file else {}) | options
    require(config)
    return config


def _config_of_any_block(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in given.items() if value is not None}
    file = options.pop("config_file", None)
    config = _ANY_BLOCK | (read_json(file) if file else {}) | options
    require(config)
    return config


def require(config: Mapping[str, Any]) -> None:
    """Refuse a config that lacks a field which has no default."""
    scheme = config.get("scheme", DEFAULT)
    missing = [
        f"--{name.replace('_', '-')}"
        for name, fields in CONFIG_FIELDS.items()
        for of, field in fields.items()
        if of in ("", scheme) and field.is_required() and name not in config
    ]
    if missing:
        raise InvalidRequest(
            f"a round's config lacks {', '.join(missing)}; give them, or a --config FILE with them"
        )


def _gathers(
    into: str, options: list[inspect.Parameter], build: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Replace the parameter `into` of a command by `options`."""

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in signature.parameters.values()
            if each.name != into
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            taken = {option.name: given.pop(option.name) for option in options}
            function(**given, **{into: build(taken)})

        parameters = [*own, *options]
        # Typer reads both.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _option(name: str, annotation: Any, text: str, panel: str) -> inspect.Parameter:
    allowed = (annotation, *get_args(annotation))
    # A word among numbers is text; the setting knows which.
    words = any(get_origin(each) is Literal for each in allowed)
    kind: Any = next((each for each in (bool, int, float) if each in allowed and not words), str)
    option = Annotated[
        kind | None, typer.Option(help=text, rich_help_panel=panel, show_default=False)
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def _with_default(name: str) -> str:
    said = {scheme: _default(field) for scheme, field in CONFIG_FIELDS[name].items()}
    # The first has the panel's heading to say what it is of.
    first = next(iter(said.values()))
    shown = [first, *(f"{scheme} {each}" for scheme, each in [*said.items()][1:] if each)]
    return CONFIG_HELP[name] + (f" ({'; '.join(shown)})" if first else "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default is False:
        return ""
    return field.default if isinstance(field.default, str) else f"{field.default:g}"

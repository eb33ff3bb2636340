"""Checks of the known fields of a chat request: type and range, or a 400 naming the field.

Every check takes the field's path and its value, which is not null. Unknown fields are not looked
at: there is no version pin, and fields are only added.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from services.edge.errors import ApiError, invalid

Check = Callable[[str, Any], None]

TOKENS_MAX = 1_000_000_000
STOPS_MAX = 16
NAMES_MAX = 64
METADATA_PAIRS_MAX = 16
METADATA_KEY_MAX = 64
METADATA_VALUE_MAX = 512
SESSION_ID_MAX = 256
MODELS_MAX = 20

NOT_OFFERED_PLUGINS = frozenset({"web", "web-fetch", "file-parser", "fusion"})
EFFORTS = ("max", "xhigh", "high", "medium", "low", "minimal", "none")
SERVICE_TIERS = ("auto", "default", "fast", "flex", "priority", "scale")
RESPONSE_FORMATS = ("text", "json_object", "json_schema", "grammar", "python")


def wrong_type(path: str, expected: str) -> ApiError:
    return invalid(path, f"`{path}` must be {expected}.")


def string(path: str, value: Any) -> None:
    if not isinstance(value, str):
        raise wrong_type(path, "a string")


def text(maximum: int) -> Check:
    def check(path: str, value: Any) -> None:
        if type(value) is not str:
            raise wrong_type(path, "a string")
        if len(value) > maximum:
            raise ApiError(
                400,
                f"`{path}` must not be longer than {maximum} characters.",
                error_type="string_too_long",
                field=path,
            )

    return check


def boolean(path: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise wrong_type(path, "a boolean")


def mapping(path: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object")


def number(low: float, high: float) -> Check:
    def check(path: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(path, "a number")
        if not low <= value <= high:
            raise invalid(path, f"`{path}` must be between {low:g} and {high:g}.")

    return check


def integer(low: int, high: int) -> Check:
    def check(path: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(path, "an integer")
        if not low <= value <= high:
            raise invalid(path, f"`{path}` must be between {low} and {high}.")

    return check


def one_of(allowed: Collection[str]) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise wrong_type(path, "one of " + ", ".join(allowed))

    return check


def strings(maximum: int, minimum: int = 0) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, list):
            raise wrong_type(path, "an array of strings")
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item:
                raise wrong_type(f"{path}[{index}]", "a string that is not empty")
        if not minimum <= len(value) <= maximum:
            raise invalid(path, f"`{path}` must have between {minimum} and {maximum} entries.")

    return check


def stop(path: str, value: Any) -> None:
    if isinstance(value, list):
        strings(STOPS_MAX)(path, value)
    elif not isinstance(value, str):
        raise wrong_type(path, "a string or an array of strings")


def logit_bias(path: str, value: Any) -> None:
    mapping(path, value)
    for token, bias in value.items():
        number(-100, 100)(f"{path}.{token}", bias)


def metadata(path: str, value: Any) -> None:
    mapping(path, value)
    if len(value) > METADATA_PAIRS_MAX:
        raise invalid(path, f"`{path}` must not have more than {METADATA_PAIRS_MAX} pairs.")
    for name, item in value.items():
        if len(name) > METADATA_KEY_MAX:
            raise invalid(path, f"A key of `{path}` is longer than {METADATA_KEY_MAX} characters.")
        text(METADATA_VALUE_MAX)(f"{path}.{name}", item)


def tools(path: str, value: Any) -> None:
    if not isinstance(value, list):
        raise wrong_type(path, "an array")
    for index, tool in enumerate(value):
        at = f"{path}[{index}]"
        mapping(at, tool)
        kind = tool.get("type")
        if not isinstance(kind, str):
            raise wrong_type(f"{at}.type", "a string")
        if kind != "function":
            raise invalid(f"{at}.type", f"`{at}.type` must be function; others are not offered.")
        _function(f"{at}.function", tool.get("function"))


def functions(path: str, value: Any) -> None:
    if not isinstance(value, list):
        raise wrong_type(path, "an array")
    for index, function in enumerate(value):
        _function(f"{path}[{index}]", function)


def function_call(path: str, value: Any) -> None:
    if isinstance(value, dict):
        _name(f"{path}.name", value.get("name"))
    else:
        one_of(("none", "auto"))(path, value)


def percentiles(path: str, value: Any) -> None:
    """A number, or an object of them."""
    if isinstance(value, dict):
        _object_of(path, value, dict.fromkeys(("p50", "p75", "p90", "p99"), number(0, math.inf)))
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(path, "a number or an object")
    else:
        number(0, math.inf)(path, value)


def tool_choice(path: str, value: Any) -> None:
    if isinstance(value, str):
        one_of(("none", "auto", "required"))(path, value)
        return
    if not isinstance(value, dict):
        raise wrong_type(path, "none, auto, required or an object")
    string(f"{path}.type", value.get("type"))
    if value["type"] != "function":
        raise wrong_type(path, "none, auto, required or an object of type function")
    mapping(f"{path}.function", value.get("function"))
    _name(f"{path}.function.name", value["function"].get("name"))


def response_format(path: str, value: Any) -> None:
    mapping(path, value)
    one_of(RESPONSE_FORMATS)(f"{path}.type", value.get("type"))
    if value["type"] == "json_schema":
        schema = value.get("json_schema")
        mapping(f"{path}.json_schema", schema)
        _name(f"{path}.json_schema.name", schema.get("name"))
        if schema.get("schema") is not None:
            mapping(f"{path}.json_schema.schema", schema["schema"])


def reasoning(path: str, value: Any) -> None:
    mapping(path, value)
    _object_of(
        path,
        value,
        {
            "effort": one_of(EFFORTS),
            "max_tokens": integer(0, TOKENS_MAX),
            "exclude": boolean,
            "enabled": boolean,
            "summary": string,
        },
    )


def plugins(path: str, value: Any) -> None:
    if not isinstance(value, list):
        raise wrong_type(path, "an array")
    for index, plugin in enumerate(value):
        at = f"{path}[{index}]"
        mapping(at, plugin)
        string(f"{at}.id", plugin.get("id"))
        enabled = plugin.get("enabled", True)
        boolean(f"{at}.enabled", enabled)
        if enabled and plugin["id"] in NOT_OFFERED_PLUGINS:
            raise invalid(f"{at}.id", f"The plugin `{plugin['id']}` is not offered here.")


def stream_options(path: str, value: Any) -> None:
    mapping(path, value)
    _object_of(path, value, {"include_usage": boolean})


def debug(path: str, value: Any) -> None:
    mapping(path, value)
    _object_of(path, value, {"echo_upstream_body": boolean})


def _object_of(path: str, value: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    for name, check in checks.items():
        item = value.get(name)
        if item is not None:
            check(f"{path}.{name}", item)


def _function(path: str, value: Any) -> None:
    mapping(path, value)
    _name(f"{path}.name", value.get("name"))
    parameters = value.get("parameters")
    if parameters is not None:
        mapping(f"{path}.parameters", parameters)


def _name(path: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise wrong_type(path, "a string that is not empty")
    if len(value) > NAMES_MAX:
        raise ApiError(
            400,
            f"`{path}` must not be longer than {NAMES_MAX} characters.",
            error_type="string_too_long",
            field=path,
        )


CHECKS: Mapping[str, Check] = {
    "model": text(256),
    "models": strings(MODELS_MAX),
    "route": one_of(("fallback", "sort")),
    "stream": boolean,
    "stream_options": stream_options,
    "max_tokens": integer(1, TOKENS_MAX),
    "max_completion_tokens": integer(1, TOKENS_MAX),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(0, TOKENS_MAX),
    "top_a": number(0, 1),
    "min_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 2),
    "n": integer(1, 128),
    "seed": integer(-(2**63), 2**63 - 1),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "logit_bias": logit_bias,
    "stop": stop,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": boolean,
    "functions": functions,
    "function_call": function_call,
    "response_format": response_format,
    "reasoning": reasoning,
    "reasoning_effort": one_of(EFFORTS),
    "include_reasoning": boolean,
    "verbosity": one_of(("low", "medium", "high", "xhigh", "max")),
    "service_tier": one_of(SERVICE_TIERS),
    "session_id": text(SESSION_ID_MAX),
    "user": string,
    "safety_identifier": string,
    "preset": string,
    "store": boolean,
    "metadata": metadata,
    "trace": mapping,
    "plugins": plugins,
    "transforms": strings(16),
    "modalities": strings(8),
    "audio": mapping,
    "prediction": mapping,
    "web_search_options": mapping,
    "image_config": mapping,
    "cache_control": mapping,
    "prompt_cache_options": mapping,
    "prompt_cache_key": string,
    "usage": mapping,
    "debug": debug,
}
"""Field → check. `messages` and `provider` have their own (messages.py, preferences.py)."""

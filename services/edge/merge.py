"""Put the deltas of a stream together into the messages of a whole reply."""

from typing import Any

_TEXTS = ("content", "reasoning", "refusal", "reasoning_content")
_LISTS = ("images", "annotations")
_DETAIL_TEXTS = ("text", "summary", "data")


class Choices:
    """The choices of one reply, as far as they have come."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._choices)

    def add(self, choices: list[dict[str, Any]]) -> None:
        """Take the `choices` array of one chunk."""
        for piece in choices:
            index = piece.get("index", 0)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = {
                    "index": index,
                    "message": {"role": "assistant", "content": None},
                    "finish_reason": None,
                }
            for name, value in piece.items():
                if name == "delta":
                    if value:
                        _merge_message(choice["message"], value)
                elif name == "logprobs":
                    _merge_logprobs(choice, value)
                elif name != "index" and value is not None:
                    choice[name] = value

    def whole(self, finish_reason: str, native_finish_reason: str) -> list[dict[str, Any]]:
        """Return the choices of the whole reply; the reasons fill in where a choice has none."""
        if not self._choices:
            self.add([{"index": 0, "delta": {"content": ""}}])
        for choice in self._choices.values():
            choice["finish_reason"] = choice["finish_reason"] or finish_reason or None
            choice.setdefault("logprobs", None)
            native = choice.get("native_finish_reason") or native_finish_reason
            choice["native_finish_reason"] = native or None
            message = choice["message"]
            message.setdefault("refusal", None)
            calls = message.pop("tool_calls", None)
            if calls:
                message["tool_calls"] = [calls[index] for index in sorted(calls)]
        choices = self._choices
        return [choices[index] for index in sorted(choices)]


def _merge_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name in _TEXTS:
            before = message.get(name)
            message[name] = before + value if before else value
        elif name == "tool_calls":
            calls = message.setdefault("tool_calls", {})
            for position, call in enumerate(value):
                _merge_call(calls, call, position)
        elif name == "reasoning_details":
            _merge_details(message.setdefault(name, []), value)
        elif name in _LISTS:
            message.setdefault(name, []).extend(value)
        elif name == "audio" and isinstance(value, dict):
            audio = message.setdefault(name, {})
            for key, part in value.items():
                joined = key in ("data", "transcript") and key in audio
                audio[key] = audio[key] + part if joined else part
        else:
            message[name] = value


def _merge_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any], position: int) -> None:
    index = piece.get("index", position)
    call = calls.get(index)
    if call is None:
        call = calls[index] = {"id": "", "type": "function"}
    for name, value in piece.items():
        if name == "function":
            function = call.setdefault("function", {"name": "", "arguments": ""})
            function["name"] = function["name"] or value.get("name") or ""
            function["arguments"] += value.get("arguments") or ""
        elif value is not None and name != "index":
            call[name] = value


def _merge_details(details: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """Join the pieces of one block of reasoning: same index, same type."""
    for piece in pieces:
        last = details[-1] if details else None
        same = (
            last is not None
            and last.get("index") == piece.get("index")
            and last.get("type") == piece.get("type")
            and (last.get("id") is None or piece.get("id") in (None, last.get("id")))
        )
        if not same or last is None:
            details.append(dict(piece))
            continue
        for name, value in piece.items():
            if value is None:
                continue
            if name in _DETAIL_TEXTS and isinstance(last.get(name), str):
                last[name] += value
            else:
                last[name] = value


def _merge_logprobs(choice: dict[str, Any], value: dict[str, Any] | None) -> None:
    if value is None:
        return
    logprobs = choice.get("logprobs")
    if logprobs is None:
        choice["logprobs"] = dict(value)
        return
    for name, part in value.items():
        if isinstance(part, list) and isinstance(logprobs.get(name), list):
            logprobs[name] = logprobs[name] + part
        elif part is not None:
            logprobs[name] = part

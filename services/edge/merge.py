"""Put the deltas of a stream together into the messages of a whole reply."""

from typing import Any

_TEXTS = ("content", "reasoning", "refusal", "reasoning_content")
_LISTS = ("images", "annotations")
_AUDIO_TEXTS = ("data", "transcript")
_DETAIL_TEXTS = ("text", "summary", "data")


class Choices:
    """The choices of one reply, as far as they have come."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._choices)

    def add(self, choices: Any) -> None:
        """Take the `choices` array of one chunk. What is not of the type it should be is left out:
        one odd field must not spoil an answer that is paid for.
        """
        for piece in _objects(choices):
            index = _index(piece, 0)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = {
                    "index": index,
                    "message": {"role": "assistant", "content": None},
                    "finish_reason": None,
                }
            for name, value in piece.items():
                if name == "delta":
                    if isinstance(value, dict):
                        _merge_message(choice["message"], value)
                elif name == "logprobs":
                    if isinstance(value, dict):
                        _merge_logprobs(choice, value)
                elif name not in ("index", "message") and value is not None:
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
            if isinstance(value, str):
                message[name] = (message.get(name) or "") + value
        elif name == "tool_calls":
            calls = message.setdefault("tool_calls", {})
            for position, call in enumerate(_objects(value)):
                _merge_call(calls, call, position)
        elif name == "reasoning_details":
            _merge_details(message.setdefault(name, []), _objects(value))
        elif name in _LISTS:
            if isinstance(value, list):
                message.setdefault(name, []).extend(value)
        elif name == "audio":
            if isinstance(value, dict):
                _merge_audio(message.setdefault(name, {}), value)
        else:
            message[name] = value


def _merge_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any], position: int) -> None:
    index = _index(piece, position)
    call = calls.get(index)
    if call is None:
        call = calls[index] = {"id": "", "type": "function"}
    for name, value in piece.items():
        if name == "function":
            if isinstance(value, dict):
                function = call.setdefault("function", {"name": "", "arguments": ""})
                function["name"] = function["name"] or _text(value, "name")
                function["arguments"] += _text(value, "arguments")
        elif value is not None and name != "index":
            call[name] = value


def _merge_audio(audio: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if name not in _AUDIO_TEXTS:
            audio[name] = value
        elif isinstance(value, str):
            audio[name] = audio.get(name, "") + value


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
                if isinstance(value, str):
                    last[name] += value
            else:
                last[name] = value


def _merge_logprobs(choice: dict[str, Any], value: dict[str, Any]) -> None:
    logprobs = choice.get("logprobs")
    if logprobs is None:
        choice["logprobs"] = dict(value)
        return
    for name, part in value.items():
        if isinstance(part, list) and isinstance(logprobs.get(name), list):
            logprobs[name] = logprobs[name] + part
        elif part is not None:
            logprobs[name] = part


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _index(piece: dict[str, Any], otherwise: int) -> int:
    index = piece.get("index")
    return index if type(index) is int else otherwise


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""

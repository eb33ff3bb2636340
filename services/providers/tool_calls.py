"""Read streamed tool calls of the OpenAI shape, whatever order their sender makes of them."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.providers import refusals, typed

_NOTHING: Mapping[str, Any] = {}


class ToolCalls:
    """The tool calls of one choice: gives every call its own index.

    Some senders give no index, or -1, or the same one to each of several calls; some repeat id and
    name in every fragment, which readers would join. A fragment with a new id and a name begins a
    call; any other continues the latest one under its index. What is wrong in other ways (invalid
    arguments, no id, an unknown name) passes on: the client judges it.
    """

    def __init__(self) -> None:
        self._indexes: dict[int, int] = {}  # theirs -> ours, of the latest call under it
        self._ids: list[Any] = []  # by our index
        self._named: set[int] = set()
        self._latest = -1

    def read(self, fragments: list[Any]) -> list[dict[str, Any]]:
        """Return the fragments as `delta.tool_calls` should hold them."""
        return [self._read(fragment) for fragment in fragments if type(fragment) is dict]

    def _read(self, fragment: dict[str, Any]) -> dict[str, Any]:
        theirs = fragment.get("index")
        if type(theirs) is not int or theirs < 0:
            theirs = None
        call_id = typed.word(fragment.get("id")) or None
        function = fragment.get("function") or fragment.get("custom") or _NOTHING
        if type(function) is not dict and function is not _NOTHING:
            raise refusals.malformed("a tool call's function that is no object")
        named = bool(typed.text(function.get("name")))
        if theirs is not None:
            index = self._indexes.get(theirs)
        elif named or call_id:
            index = self._ids.index(call_id) if call_id in self._ids and call_id else None
        else:
            index = self._latest if self._latest >= 0 else None
        if index is not None and named and call_id and self._ids[index] not in (None, call_id):
            index = None
        out: dict[str, Any]
        if index is None:
            index = len(self._ids)
            self._ids.append(call_id)
            if theirs is not None:
                self._indexes[theirs] = index
            out = {"index": index}
            if call_id:
                out["id"] = call_id
            out["type"] = typed.word(fragment.get("type")) or "function"
        else:
            out = {"index": index}
            if call_id and self._ids[index] is None:
                self._ids[index] = out["id"] = call_id
        self._latest = index
        self._body(out, fragment, named and index not in self._named)
        if named:
            self._named.add(index)
        return out

    def _body(self, out: dict[str, Any], fragment: dict[str, Any], with_name: bool) -> None:
        function = fragment.get("function")
        if type(function) is dict:
            arguments = function.get("arguments")
            if type(arguments) is not str:
                arguments = "" if arguments is None else orjson.dumps(arguments).decode()
            out["function"] = {"arguments": arguments}
            if with_name:
                name = typed.text(function.get("name"))
                out["function"] = {"name": name, "arguments": arguments}
        custom = fragment.get("custom")
        if type(custom) is dict and (custom.get("name") or custom.get("input")):
            out["custom"] = {
                key: typed.text(custom[key]) for key in ("name", "input") if key in custom
            }

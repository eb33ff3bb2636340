"""Google's generateContent, as AI Studio and Vertex AI speak it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson

from bourse.v1.events_pb2 import Unit
from services.providers import counts, refusals, typed
from services.providers.call import AttemptFailed, Call, Chunk, Credential, Endpoint, Event, Usage
from services.providers.finish import finish_reason
from services.providers.gemini_body import gemini_body
from services.providers.parts import GEMINI_FORMAT
from services.providers.presets import Preset
from services.providers.target import post

FRAMING = "sse"


def request(call: Call, endpoint: Endpoint, credential: Credential) -> httpx.Request:
    """Write the call. Raise AttemptFailed (400) naming a part that Gemini cannot be given."""
    verb = "streamGenerateContent" if call.streamed else "generateContent"
    return post(
        call,
        endpoint,
        credential,
        f"/models/{{model}}:{verb}",
        gemini_body(call, endpoint),
        query="alt=sse" if call.streamed else "",
    )


def reading(preset: Preset) -> "_Answer":
    """Begin to read an answer: events, the elements of an array, or one whole document.

    All are alike. There is no end mark: the finish reason is given out when the body ends.
    """
    return _Answer()


def failure(status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed:
    """Say what an error response means."""
    document = refusals.document_of(body, first_of_list=True)
    if document is None:
        return refusals.unreadable(status, headers, body)
    return _refused(document, status, headers)


def _refused(
    document: Mapping[str, Any], status: int = 0, headers: Mapping[str, str] | None = None
) -> AttemptFailed:
    error = document.get("error")
    fields: Mapping[str, Any] = error if isinstance(error, dict) else document
    text = fields.get("message") or (error if isinstance(error, str) else "")
    kind = str(fields.get("status") or "")
    code = ""
    headers = dict(headers or {})
    details = fields.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        code = str(detail.get("reason") or code)
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and delay.endswith("s"):
            headers.setdefault("retry-after", delay[:-1])
    own = fields.get("code")
    return refusals.refused(
        status or (own if isinstance(own, int) else 0),
        code=code,
        kind=kind,
        text=str(text),
        headers=headers,
        upstream_status=status or 200,
    )


# A call of a tool that was not offered is passed on like any other: the client judges it.
_CALLED = frozenset({"UNEXPECTED_TOOL_CALL"})
_ANSWER_KEYS = frozenset(
    {"candidates", "promptFeedback", "usageMetadata", "modelVersion", "responseId"}
)


class _Answer:
    """One answer being read."""

    def __init__(self) -> None:
        self.done = False
        self._roles: set[int] = set()
        self._tool_calls: dict[int, int] = {}
        self._details = 0
        self._finish: dict[int, str] = {}
        self._content = False
        self._usage: Usage | None = None
        self._bad_usage = False
        self._blocked = ""
        self._whole = False
        self._id = self._model = self._service_tier = ""
        self._searches = 0
        self._cited: set[str] = set()

    def read(self, event: Event) -> Sequence[Chunk]:
        """Return what one event adds."""
        try:
            document = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise refusals.malformed("not JSON", event.data) from None
        if type(document) is not dict:
            raise refusals.malformed("not an object", event.data)
        if document.get("error") or event.name == "error":
            raise _refused(document)
        self._whole = event.name == "json"
        candidates = document.get("candidates")
        feedback = document.get("promptFeedback")
        reported = document.get("usageMetadata")
        if event.name == "json" and not _ANSWER_KEYS & document.keys():
            raise refusals.malformed("no candidates", event.data)
        if type(feedback) is dict and feedback.get("blockReason"):
            self._blocked = str(feedback["blockReason"])
        self._id = typed.word(document.get("responseId")) or self._id
        self._model = typed.word(document.get("modelVersion")) or self._model
        choices = []
        for candidate in candidates or ():
            made = self._candidate(candidate)
            if made is not None:
                choices.append(made)
        if type(reported) is dict:
            self._service_tier = typed.word(reported.get("serviceTier")) or self._service_tier
            try:
                self._usage, self._bad_usage = usage_of(reported, self._searches), False
            except counts.Untrue:
                self._usage, self._bad_usage = None, True
        if not choices and reported is None:
            return ()
        return (self._chunk(choices),)

    def end(self, cut: AttemptFailed | None = None) -> Sequence[Chunk]:
        """Judge how the answer ended and return its finish.

        Where the connection broke after the finish reason, nothing is missing but the body's end.
        """
        if cut is not None and not self._finish:
            raise cut
        if not self._finish and self._whole and self._content:
            self._finish = dict.fromkeys(self._roles, "")  # it is all there, the word is not
        if not self._finish:
            if self._blocked and not self._content:
                raise refusals.refused(
                    400,
                    code=self._blocked,
                    text="content policy: the prompt was blocked",
                    upstream_status=200,
                )
            if not self._content:
                raise refusals.empty()
            raise refusals.cut()
        choices: list[dict[str, Any]] = []
        for index, native in sorted(self._finish.items()):
            reason = finish_reason(native, has_tool_calls=index in self._tool_calls)
            if index in self._tool_calls and (reason == "stop" or native in _CALLED):
                reason = "tool_calls"
            if reason == "error":
                raise refusals.refused(502, code=native, upstream_status=200)
            choices.append(
                {
                    "index": index,
                    "delta": {},
                    "finish_reason": reason,
                    "native_finish_reason": native,
                }
            )
        chunk = self._chunk(choices)
        chunk.finish_reason = choices[0]["finish_reason"]
        chunk.native_finish_reason = choices[0]["native_finish_reason"]
        return (chunk,)

    def _chunk(self, choices: list[dict[str, Any]]) -> Chunk:
        return Chunk(
            choices,
            self._usage,
            upstream_id=self._id,
            model=self._model,
            service_tier=self._service_tier,
            usage_refused=self._bad_usage,
        )

    def _candidate(self, candidate: Any) -> dict[str, Any] | None:
        if type(candidate) is not dict:
            raise refusals.malformed("a candidate that is no object")
        index = typed.index(candidate.get("index"))
        content = candidate.get("content")
        delta: dict[str, Any] = {}
        if type(content) is dict:
            for part in content.get("parts") or ():
                if type(part) is dict:
                    self._part(index, part, delta)
        self._grounding(candidate.get("groundingMetadata"), delta)
        reason = candidate.get("finishReason")
        if reason and reason != "FINISH_REASON_UNSPECIFIED":
            self._finish[index] = str(reason)
        logprobs = _logprobs(candidate.get("logprobsResult"))
        if not delta and logprobs is None:
            return None
        if delta:
            self._content = True
            if index not in self._roles:
                self._roles.add(index)
                delta["role"] = "assistant"
        made = {"index": index, "delta": delta, "finish_reason": None}
        if logprobs is not None:
            made["logprobs"] = logprobs
        return made

    def _part(self, index: int, part: dict[str, Any], delta: dict[str, Any]) -> None:
        signature = part.get("thoughtSignature")
        owner = ""
        if type(part.get("text")) is str:
            if part.get("thought"):
                if part["text"]:
                    delta["reasoning"] = delta.get("reasoning", "") + part["text"]
                    self._detail(delta, "reasoning.text", text=part["text"])
            elif part["text"]:
                delta["content"] = delta.get("content", "") + part["text"]
        elif type(part.get("functionCall")) is dict:
            made = self._tool_call(index, part["functionCall"])
            owner = made["id"]
            delta.setdefault("tool_calls", []).append(made)
        elif type(part.get("inlineData")) is dict:
            _inline(part["inlineData"], delta)
        if signature:
            fields = {"data": typed.text(signature), **({"id": owner} if owner else {})}
            self._detail(delta, "reasoning.encrypted", **fields)

    def _tool_call(self, index: int, call: dict[str, Any]) -> dict[str, Any]:
        at = self._tool_calls.get(index, 0)
        self._tool_calls[index] = at + 1
        name = typed.text(call.get("name"))
        arguments = orjson.dumps(call.get("args") or {}).decode()
        call_id = typed.word(call.get("id"))
        if not call_id:
            # Calls may lack ids: one that is the same however the answer was cut, and its own.
            seed = f"{self._id}/{index}/{at}/{name}/{arguments}"
            call_id = "call_" + hashlib.sha256(seed.encode()).hexdigest()[:24]
        return {
            "index": at,
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _detail(self, delta: dict[str, Any], kind: str, **fields: str) -> None:
        detail = {"type": kind, **fields, "format": GEMINI_FORMAT, "index": self._details}
        self._details += 1
        delta.setdefault("reasoning_details", []).append(detail)

    def _grounding(self, metadata: Any, delta: dict[str, Any]) -> None:
        """Citations of a search the model made; later reports repeat earlier ones."""
        if type(metadata) is not dict:
            return
        self._searches = max(self._searches, len(metadata.get("webSearchQueries") or ()))
        for source in metadata.get("groundingChunks") or ():
            web = source.get("web") if type(source) is dict else None
            web = web if type(web) is dict else {}
            uri = typed.word(web.get("uri"))
            if not uri or uri in self._cited:
                continue
            self._cited.add(uri)
            citation = {
                "url": uri,
                "title": typed.word(web.get("title")),
                "content": "",
                "start_index": 0,
                "end_index": 0,
            }
            delta.setdefault("annotations", []).append(
                {"type": "url_citation", "url_citation": citation}
            )


def _inline(data: dict[str, Any], delta: dict[str, Any]) -> None:
    media_type, content = typed.text(data.get("mimeType")), typed.text(data.get("data"))
    if media_type.startswith("audio/"):
        delta["audio"] = {"data": content, "transcript": ""}
    elif content:
        image = {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{content}"}}
        delta.setdefault("images", []).append(image)


def _logprobs(result: Any) -> dict[str, Any] | None:
    if type(result) is not dict or not result.get("chosenCandidates"):
        return None
    tops = result.get("topCandidates") or []
    content = []
    for at, chosen in enumerate(result["chosenCandidates"]):
        top = tops[at].get("candidates") or [] if at < len(tops) else []
        content.append({**_logprob(chosen), "top_logprobs": [_logprob(item) for item in top]})
    return {"content": content, "refusal": None}


def _logprob(item: dict[str, Any]) -> dict[str, Any]:
    token = typed.text(item.get("token"))
    logprob = item.get("logProbability")
    return {
        "token": token,
        "logprob": logprob if type(logprob) in (int, float) else 0.0,
        "bytes": list(token.encode()),
    }


def usage_of(reported: Mapping[str, Any], searches: int = 0) -> Usage | None:
    """Return disjoint counts of `usageMetadata`, None where it has none. Raise counts.Untrue.

    The prompt includes what was read from a cache. Thoughts and the prompts of the model's own
    tools are outside of prompt and candidates.
    """
    prompt = counts.count(reported, "promptTokenCount")
    completion = counts.count(reported, "candidatesTokenCount", "responseTokenCount")
    cached = counts.count(reported, "cachedContentTokenCount")
    thoughts = counts.count(reported, "thoughtsTokenCount")
    tool_prompt = counts.count(reported, "toolUsePromptTokenCount")
    of_prompt = _modalities(reported.get("promptTokensDetails"))
    of_cache = _modalities(reported.get("cacheTokensDetails"))
    of_output = _modalities(
        reported.get("candidatesTokensDetails") or reported.get("responseTokensDetails")
    )
    if prompt is None and completion is None and thoughts is None:
        return None
    made: dict[int, int] = {}
    if prompt is not None:
        cached = min(cached or 0, prompt)
        if cached:
            counts.split(
                made,
                cached,
                Unit.UNIT_CACHE_READ,
                ((Unit.UNIT_CACHE_READ_AUDIO, of_cache.get("AUDIO")),),
            )
        media = (
            (Unit.UNIT_PROMPT_AUDIO, "AUDIO"),
            (Unit.UNIT_PROMPT_IMAGE, "IMAGE"),
            (Unit.UNIT_PROMPT_VIDEO, "VIDEO"),
        )
        counts.split(
            made,
            prompt - cached,
            Unit.UNIT_PROMPT,
            [
                (unit, max(0, of_prompt.get(name, 0) - of_cache.get(name, 0)))
                for unit, name in media
            ],
        )
    if tool_prompt:
        made[Unit.UNIT_TOOL_PROMPT] = tool_prompt
    counts.split(
        made,
        completion or 0,
        Unit.UNIT_COMPLETION,
        (
            (Unit.UNIT_COMPLETION_IMAGE, of_output.get("IMAGE")),
            (Unit.UNIT_COMPLETION_AUDIO, of_output.get("AUDIO")),
        ),
    )
    if thoughts:
        made[Unit.UNIT_REASONING] = thoughts
    if searches:
        made[Unit.UNIT_WEB_SEARCH] = searches
    return Usage(made)


def _modalities(details: Any) -> dict[str, int]:
    made: dict[str, int] = {}
    for detail in details if type(details) is list else ():
        if type(detail) is dict:
            name = str(detail.get("modality") or "")
            made[name] = made.get(name, 0) + (counts.count(detail, "tokenCount") or 0)
    return made

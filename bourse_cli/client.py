"""Ask the HTTP API; every refusal is an exception that says what the API said.

CliError
├── Unreachable   nothing answers at the URL, or not in time
├── NoKey         no key of the needed kind was given
└── Refused       the API answered with its error envelope
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import httpx

from bourse_cli.settings import API, CliSettings

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 600.0

Needs = Literal["", "key", "management key"]


class CliError(Exception):
    """Something that is told to the user in one line, without a traceback."""

    def as_json(self) -> dict[str, Any]:
        return {"message": str(self)}


class Unreachable(CliError):
    """Nothing answers."""


class NoKey(CliError):
    """No key of the needed kind was given."""


class Refused(CliError):
    """The API refused, or an answer ended in an error."""

    def __init__(self, error: Mapping[str, Any], status: int, retry_after: str = "") -> None:
        metadata = error.get("metadata") or {}
        self.error = dict(error)
        self.status = int(error.get("code") or status)
        self.error_type = str(metadata.get("error_type") or "")
        self.field = str(metadata.get("field") or "")
        self.retry_after = retry_after
        super().__init__(str(error.get("message") or "no message"))

    def as_json(self) -> dict[str, Any]:
        return self.error

    def __str__(self) -> str:
        told = f"{self.status} {self.error_type}".strip() + f": {super().__str__()}"
        if self.field:
            told += f" (field: {self.field})"
        if self.retry_after:
            told += f" (retry after {self.retry_after} s)"
        return told


class Client:
    """One connection to one exchange."""

    def __init__(self, settings: CliSettings) -> None:
        self.settings = settings
        self._http = httpx.Client(
            base_url=settings.url,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": "bourse-cli"},
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        needs: Needs = "",
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """Return the JSON that the API answers to `method` on `/api/v1` + `path`."""
        with self._reaching():
            response = self._http.request(
                method,
                API + path,
                json=body,
                params={name: value for name, value in (query or {}).items() if value is not None},
                headers=self._headers(needs),
                timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            )
        if not response.is_success:
            raise _refusal(response)
        try:
            answer = response.json()
        except ValueError:
            raise CliError(f"{self.settings.url} answered something that is not JSON") from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise Refused(answer["error"], response.status_code)
        return answer

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer; a stream that is cut is an error."""
        request = self._http.stream(
            "POST",
            API + path,
            json=body,
            headers=self._headers("key"),
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )
        with self._reaching(), request as response:
            if not response.is_success:
                response.read()
                raise _refusal(response)
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk: dict[str, Any] = json.loads(data)
                yield chunk
                if isinstance(chunk.get("error"), dict):
                    raise Refused(chunk["error"], response.status_code)
        raise CliError("the answer was cut off")

    def _headers(self, needs: Needs) -> dict[str, str]:
        key = self.settings.management_key if needs == "management key" else self.settings.key
        if needs and not key:
            name = "BOURSE_MANAGEMENT_KEY" if needs == "management key" else "BOURSE_KEY"
            raise NoKey(f"this needs a {needs}: set {name}, or run where var/quickstart.env is")
        return {"Authorization": f"Bearer {key}"} if key else {}

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.settings.url} did not answer in time") from error
        except httpx.TransportError as error:
            raise Unreachable(f"nothing answers at {self.settings.url} ({error})") from error
        except httpx.InvalidURL as error:
            raise CliError(f"{self.settings.url!r} is not a URL: {error}") from error


def _refusal(response: httpx.Response) -> Refused:
    retry_after = response.headers.get("Retry-After", "")
    try:
        error = response.json()["error"]
        return Refused(error, response.status_code, retry_after)
    except (ValueError, KeyError, TypeError, AttributeError):
        message = response.text.strip()[:200] or response.reason_phrase
        return Refused({"message": message}, response.status_code, retry_after)

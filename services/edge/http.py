"""What the ordinary routes share: who calls, how bodies are read, how errors are written."""

import json
import logging
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bourse.rpc import RpcError
from services.edge.errors import ApiError, of_rpc, server_error

log = logging.getLogger(__name__)

T = TypeVar("T")

Authorization = Annotated[str | None, Header(alias="Authorization", description="`Bearer <key>`")]


class Json(Response):
    """A JSON answer, written by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def raw_headers(request: Request) -> Mapping[bytes, bytes]:
    return dict(request.scope["headers"])


async def asked(call: Awaitable[T]) -> T:
    """Await another service; its refusals become the client's. Raises ApiError."""
    try:
        return await call
    except RpcError as error:
        raise of_rpc(error) from error


def failed(error: ApiError) -> Response:
    response = Response(error.body(), error.status, media_type="application/json")
    for name, value in error.headers():
        response.headers[name.decode()] = value.decode()
    return response


def handle_errors(app: FastAPI) -> None:
    """Answer every failure with the one envelope."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return failed(error)

    @app.exception_handler(RpcError)
    async def unanswered(request: Request, error: RpcError) -> Response:
        return failed(of_rpc(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        if first["type"] == "json_invalid":
            return failed(ApiError(400, "The body is not valid JSON.", field="body"))
        pointer = "/" + "/".join(where[1:]) if where[0] == "body" else ".".join(where[1:])
        return failed(ApiError(400, f"{pointer}: {first['msg']}.", field=pointer))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = {404: "No such route.", 405: "This route has no such method."}
        answer = failed(ApiError(error.status_code, message.get(error.status_code, error.detail)))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    @app.exception_handler(UnicodeEncodeError)
    async def half_a_character(request: Request, error: UnicodeEncodeError) -> Response:
        # JSON can spell half of a surrogate pair, and no message or database can hold it.
        return failed(ApiError(400, "The request has text that is not Unicode.", field="body"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return failed(server_error())


async def body_object(request: Request, limit: int) -> dict[str, Any]:
    """Read a small JSON object. Raises ApiError 400 or 413."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise ApiError(413, f"The body is longer than {limit} bytes.", field="body")
    try:
        value = orjson.loads(data)
    except json.JSONDecodeError as error:
        raise ApiError(400, "The body is not valid JSON.", field="body") from error
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", field="body")
    return value

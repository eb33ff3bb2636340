"""Edge's HTTP: one bare ASGI function in front of FastAPI for completions, FastAPI for the rest.

A framework costs more per request than all the rest of the request path, so completions never
enter it. Its twin of the route below exists for the OpenAPI document, and answers the same.
"""

from collections.abc import Sequence
from typing import Protocol

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.security import HTTPBearer
from fastapi_swagger import patch_fastapi
from starlette.types import Receive, Scope, Send

from services.edge import documents
from services.edge.http import Json, handle_errors
from services.edge.inference import Inference
from services.edge.server import Unchunked

API = "/api/v1"
ALIAS = "/v1"
COMPLETIONS = frozenset({f"{API}/chat/completions", f"{ALIAS}/chat/completions"})


class Health(Protocol):
    """What probes ask; a process is one."""

    @property
    def alive(self) -> bool: ...

    def unready(self) -> list[str]: ...


class App:
    """The ASGI application."""

    def __init__(self, inference: Inference, pages: FastAPI) -> None:
        self._inference = inference
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path.endswith("/") and path != "/":  # a redirect would be built from Host
                path = path.rstrip("/") or "/"
                scope = {**scope, "path": path, "raw_path": path.encode()}
            if scope["http_version"] == "1.0":
                send = Unchunked(send).send
            if path in COMPLETIONS and scope["method"] == "POST":
                await self._inference(scope, receive, send)
                return
            if path.startswith(ALIAS + "/"):  # every route has this second name
                scope = dict(scope)
                scope["path"] = "/api" + path
                scope["raw_path"] = b"/api" + scope.get("raw_path", path.encode())
        await self._pages(scope, receive, send)


class _Unframed(Response):
    """Hands a request that FastAPI has taken to the bare ASGI function."""

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self._inference = inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inference(scope, receive, send)


def pages(inference: Inference, routers: Sequence[APIRouter], health: Health) -> FastAPI:
    """Return the FastAPI application: every ordinary route, and the document of them all."""
    app = FastAPI(
        title="Bourse",
        version="1",
        description=documents.DESCRIPTION,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
        default_response_class=Json,
        # For the document only, so that its page can send a key; the routes check keys themselves.
        dependencies=[Security(HTTPBearer(auto_error=False, description="A key, `sk-bourse-…`"))],
    )
    handle_errors(app)
    # FastAPI's own page fetches its script from elsewhere; this one serves what is installed.
    patch_fastapi(
        app,
        docs_url=f"{API}/docs",
        swagger_js_url=f"{API}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{API}/docs/swagger-ui.css",
        swagger_favicon_url=f"{API}/docs/favicon.png",
    )

    @app.post(
        f"{API}/chat/completions",
        tags=["Inference"],
        summary="Create a chat completion",
        response_class=Response,
        responses=documents.COMPLETION_RESPONSES,
        openapi_extra=documents.COMPLETION_BODY,
    )
    async def chat_completions(request: Request) -> Response:
        """Send a conversation to a model, streamed or not. Usage and cost come with every reply."""
        return _Unframed(inference)

    for router in routers:
        app.include_router(router, prefix=API)

    @app.get("/livez", include_in_schema=False)
    async def livez() -> Json:
        return Json({"alive": True}) if health.alive else Json({"alive": False}, status_code=503)

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Json:
        missing = health.unready()
        return Json({"ready": not missing, "waiting_for": missing}, 503 if missing else 200)

    return app

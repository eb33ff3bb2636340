"""Where a call goes and how it proves itself: the URL and headers of an upstream request.

Both are the same for every call of an endpoint, and building them costs more than the rest of a
request, so they are kept by what they are made of.
"""

from functools import lru_cache
from urllib.parse import quote

import httpx
import orjson

from services.providers.call import Call, Credential, Endpoint
from services.providers.presets import Preset


def post(
    call: Call,
    endpoint: Endpoint,
    credential: Credential,
    path: str,
    body: object,
    *,
    query: str = "",
    more_headers: tuple[tuple[str, str], ...] = (),
) -> httpx.Request:
    """Return the POST of a JSON body to `path` under the endpoint's base URL.

    `{model}` in the base URL or the path stands for the upstream model. A query in the base URL
    (`?api-version=…`) stays. The transport adds the length.
    """
    content = orjson.dumps(body)
    url, headers = _target(
        endpoint.base_url,
        endpoint.preset.path or path,
        query,
        call.model or endpoint.upstream_model,
        endpoint.preset,
        credential,
        more_headers,
    )
    request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(content))
    request.read()  # so that `request.content` is there, as for any other request
    return request


@lru_cache(maxsize=4096)
def _target(
    base_url: str,
    path: str,
    query: str,
    model: str,
    preset: Preset,
    credential: Credential,
    more_headers: tuple[tuple[str, str], ...],
) -> tuple[httpx.URL, httpx.Headers]:
    url = _url(base_url, path, query, model)
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream, application/json",
        **preset.headers,
        **dict(more_headers),
    }
    if credential.secret and credential.kind == "bearer":
        headers["authorization"] = f"Bearer {credential.secret}"
    elif credential.secret and credential.kind != "none":
        name = credential.header or preset.credential_header or "authorization"
        headers[name.lower()] = credential.secret
    # Made once through httpx itself, which adds `host`; a copy of them is cheap.
    return url, httpx.Request("GET", url, headers=headers).headers


def _url(base_url: str, path: str, query: str, model: str) -> httpx.URL:
    base, _, base_query = base_url.partition("?")
    base = base.rstrip("/")
    if not base.endswith(path):
        # `…/v1` + `/v1/messages`: a base URL may already end with the first step of the path.
        first = "/" + path.lstrip("/").split("/", 1)[0]
        base = base.removesuffix(first)
        base += path
    joined = "&".join(part for part in (base_query, query) if part)
    base = base.replace("{model}", quote(model, safe="@:"))
    return httpx.URL(f"{base}?{joined}" if joined else base)

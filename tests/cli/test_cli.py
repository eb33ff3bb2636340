"""The `bourse` command against a stub of the HTTP API: what it asks, and what it tells."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bourse_cli import settings
from bourse_cli.main import main


class Asked(NamedTuple):
    method: str
    path: str
    key: str
    body: Any


Answer = tuple[int, bytes, dict[str, str]]

MISSING: Answer = (404, b'{"error": {"code": 404, "message": "no such route"}}', {})


class Stub(ThreadingHTTPServer):
    """Answers what `answers` holds by method and path, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], Answer] = {}
        self.asked: list[Asked] = []

    def answer(self, method: str, path: str, body: Any, status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[method, path] = (status, raw, headers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def handle_any(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = json.loads(raw) if raw else None
        self.server.asked.append(Asked(self.command, self.path, key, body))
        status, answer, headers = self.server.answers.get((self.command, self.path), MISSING)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Told(NamedTuple):
    status: int
    out: str
    err: str


Bourse = Callable[..., Told]


@pytest.fixture
def bourse(
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Bourse:
    """Run the command in this process, pointed at the stub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOURSE_URL", stub.url)
    monkeypatch.setenv("BOURSE_KEY", "sk-test")
    monkeypatch.setenv("BOURSE_MANAGEMENT_KEY", "mk-test")
    monkeypatch.setenv("COLUMNS", "40")

    def run(*arguments: str, stdin: str = "") -> Told:
        monkeypatch.setattr(sys, "argv", ["bourse", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Told(int(ended.value.code or 0), out, err)

    return run


def test_a_created_key_is_shown_with_the_warning_beside_it(bourse: Bourse, stub: Stub) -> None:
    stub.answer("POST", "/api/v1/keys", {"data": {"hash": "abc"}, "key": "sk-bourse-1"}, 201)
    told = bourse("keys", "create", "laptop", "--expires-at", "2030-01-01T00:00:00Z")
    assert told.status == 0
    assert "sk-bourse-1" in told.out
    assert "not shown again" in told.err
    body = {"name": "laptop", "expires_at": "2030-01-01T00:00:00Z"}
    assert stub.asked == [Asked("POST", "/api/v1/keys", "mk-test", body)]


def test_keys_are_listed_and_deleted_with_the_management_key(bourse: Bourse, stub: Stub) -> None:
    digest = "abc" * 21
    key = {"name": "laptop", "label": "sk-…1", "hash": digest, "usage": 0.25}
    stub.answer("GET", "/api/v1/keys", {"data": [key]})
    stub.answer("DELETE", "/api/v1/keys/abc", {"deleted": True})
    listed = bourse("keys", "list")
    assert "laptop" in listed.out
    assert "0.25" in listed.out
    assert digest in listed.out  # in one piece, however narrow the terminal
    assert bourse("keys", "delete", "abc").status == 0
    assert [asked.key for asked in stub.asked] == ["mk-test", "mk-test"]


def test_credits_are_told_with_what_is_left(bourse: Bourse, stub: Stub) -> None:
    stub.answer("GET", "/api/v1/credits", {"data": {"total_credits": 10, "total_usage": 2.25}})
    assert "7.75" in bourse("credits").out


def test_json_is_what_the_api_said(bourse: Bourse, stub: Stub) -> None:
    answer = {"data": {"total_credits": 10, "total_usage": 2.25}}
    stub.answer("GET", "/api/v1/credits", answer)
    assert json.loads(bourse("credits", "--json").out) == answer


def test_models_show_prices_per_million_and_can_be_searched(bourse: Bourse, stub: Stub) -> None:
    pricing = {"prompt": "0.00000015", "completion": "0.0000006"}
    models = [
        {"id": "a/one", "name": "One", "context_length": 8192, "pricing": pricing},
        {"id": "b/two", "name": "Two", "context_length": 8192, "pricing": pricing},
    ]
    stub.answer("GET", "/api/v1/models", {"data": models})
    told = bourse("models", "two")
    assert "b/two" in told.out
    assert "a/one" not in told.out
    assert "0.15" in told.out
    assert "0.6" in told.out


def chunk(**values: Any) -> bytes:
    return b"data: " + json.dumps({"id": "gen-1", **values}).encode() + b"\n\n"


def test_chat_streams_the_answer_to_stdout_and_its_cost_to_stderr(
    bourse: Bourse, stub: Stub
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.0000125}
    stream = (
        b": OPENROUTER PROCESSING\n\n"
        + chunk(choices=[{"delta": {"content": "Hel"}}])
        + chunk(choices=[{"delta": {"content": "lo"}}])
        + chunk(choices=[], usage=usage)
        + b"data: [DONE]\n\n"
    )
    stub.answer("POST", "/api/v1/chat/completions", stream)
    told = bourse("chat", "Say hello", "--model", "a/one")
    assert told == Told(0, "Hello\n", "3 + 2 tokens · 0.0000125 USD · gen-1\n")
    (asked,) = stub.asked
    assert asked.key == "sk-test"
    assert asked.body["model"] == "a/one"
    assert asked.body["stream"] is True
    assert asked.body["messages"] == [{"role": "user", "content": "Say hello"}]


def test_chat_reads_a_prompt_from_a_pipe(bourse: Bourse, stub: Stub) -> None:
    answer = {"id": "gen-1", "choices": [{"message": {"content": "yes"}}]}
    stub.answer("POST", "/api/v1/chat/completions", answer)
    told = bourse("chat", "--no-stream", "--system", "Be brief", stdin="Are you there?")
    assert told.out == "yes\n"
    assert [message["content"] for message in stub.asked[0].body["messages"]] == [
        "Be brief",
        "Are you there?",
    ]


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (b"", "cut off"),
        (chunk(choices=[], error={"code": 502, "message": "upstream broke"}), "upstream broke"),
    ],
)
def test_a_stream_that_breaks_is_not_a_success(
    bourse: Bourse, stub: Stub, ending: bytes, said: str
) -> None:
    stream = chunk(choices=[{"delta": {"content": "Hel"}}]) + ending
    stub.answer("POST", "/api/v1/chat/completions", stream)
    told = bourse("chat", "Say hello")
    assert told.status == 1
    assert said in told.err


def test_a_refusal_tells_status_type_field_and_when_to_retry(bourse: Bourse, stub: Stub) -> None:
    metadata = {"error_type": "rate_limit_exceeded", "field": "max_tokens"}
    error = {"code": 429, "message": "Slow down.", "metadata": metadata}
    stub.answer("POST", "/api/v1/chat/completions", {"error": error}, 429, Retry_After="7")
    told = bourse("chat", "Say hello")
    assert told.status == 1
    assert told.out == ""
    line = "429 rate_limit_exceeded: Slow down. (field: max_tokens) (retry after 7 s)\n"
    assert told.err == line


def test_a_refusal_as_json_is_the_error_of_the_api(bourse: Bourse, stub: Stub) -> None:
    error = {"code": 402, "message": "No credit.", "metadata": {"error_type": "payment_required"}}
    stub.answer("GET", "/api/v1/generation?id=gen-1", {"error": error}, 402)
    told = bourse("generation", "gen-1", "--json")
    assert told.status == 1
    assert json.loads(told.out) == {"error": error}


def test_an_answer_that_is_no_envelope_is_told_without_a_traceback(
    bourse: Bourse, stub: Stub
) -> None:
    stub.answer("GET", "/api/v1/models", b"<html>Bad gateway</html>", 502)
    told = bourse("models")
    assert told.status == 1
    assert told.err == "502: <html>Bad gateway</html>\n"


def test_nothing_listening_is_told_in_one_line(bourse: Bourse) -> None:
    told = bourse("--url", "http://127.0.0.1:9", "models")
    assert told.status == 1
    assert told.err.startswith("nothing answers at http://127.0.0.1:9")
    assert "Traceback" not in told.err


def test_a_missing_key_names_the_variable(
    bourse: Bourse, monkeypatch: pytest.MonkeyPatch, stub: Stub
) -> None:
    monkeypatch.delenv("BOURSE_MANAGEMENT_KEY")
    told = bourse("credits")
    assert told.status == 1
    assert "BOURSE_MANAGEMENT_KEY" in told.err
    assert stub.asked == []


def test_a_provider_lists_itself_step_by_step(bourse: Bourse, stub: Stub) -> None:
    for method, path in (
        ("POST", ""),
        ("PUT", "/acme/connection"),
        ("PUT", "/acme/credential"),
        ("PUT", "/acme/models/acme/one"),
        ("POST", "/acme/endpoints/e1/prices"),
    ):
        stub.answer(method, f"/api/v1/providers{path}", {"data": {"slug": "acme"}})
    steps = [
        bourse("providers", "create", "acme", "--name", "Acme"),
        bourse(
            "providers", "connection", "acme",
            "--base-url", "https://acme.example/v1", "--dialect", "openai_chat",
        ),
        bourse("providers", "credential", "acme", stdin="s3cret\n"),
        bourse("providers", "model", "acme", "acme/one", "--prompt", "0.000001"),
        bourse("providers", "price", "acme", "e1", "--prompt", "0.000001", "--completion", "0.02"),
    ]  # fmt: skip
    assert [told.status for told in steps] == [0, 0, 0, 0, 0]
    assert [asked.key for asked in stub.asked] == ["mk-test"] * 5
    assert stub.asked[1].body == {"base_url": "https://acme.example/v1", "dialect": "openai_chat"}
    assert stub.asked[2].body == {"kind": "bearer", "secret": "s3cret"}
    assert "s3cret" not in "".join(told.out + told.err for told in steps)


def test_a_credential_without_a_secret_is_not_sent(bourse: Bourse, stub: Stub) -> None:
    told = bourse("providers", "credential", "acme", stdin="")
    assert told.status == 1
    assert stub.asked == []


def test_a_generation_shows_its_attempts_and_cost_lines(bourse: Bourse, stub: Stub) -> None:
    data = {
        "id": "gen-1",
        "total_cost": 0.00001,
        "provider_responses": [{"provider": "Acme", "status": 529}],
        "cost_lines": [{"unit": "prompt_tokens", "count": 12}],
    }
    stub.answer("GET", "/api/v1/generation?id=gen-1", {"data": data})
    told = bourse("generation", "gen-1")
    for shown in ("0.00001", "Acme", "529", "prompt_tokens", "12"):
        assert shown in told.out


def test_the_file_of_the_first_start_is_read(tmp_path: Path) -> None:
    (tmp_path / "quickstart.env").write_text(
        "# written by a start\n"
        "export OPENAI_BASE_URL='http://127.0.0.1:9000/api/v1'\n"
        "export OPENAI_API_KEY=sk-1\n"
        "export BOURSE_MANAGEMENT_KEY=mk-1\n"
    )
    found = settings.read({"BOURSE_VAR": str(tmp_path)})
    assert found == settings.CliSettings("http://127.0.0.1:9000", "sk-1", "mk-1")


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    (tmp_path / "quickstart.env").write_text("OPENAI_BASE_URL=http://file/api/v1\n")
    environment = {"BOURSE_VAR": str(tmp_path), "BOURSE_URL": "http://environment"}
    assert settings.read(environment).url == "http://environment"
    assert settings.read(environment, "http://given/").url == "http://given"

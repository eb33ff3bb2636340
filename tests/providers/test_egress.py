"""Where a provider's URL may lead us, and where not."""

import ipaddress
from pathlib import Path

import pytest

from services.providers.egress import LOOPBACK, EgressRefused, Guard
from services.providers.http1 import Limits
from services.providers.transport import Upstream, guarded_http
from tests.providers.conftest import PATH, MakeWorker
from tests.providers.worker import DONE, delta, sse
from tests.replay import Replay

HOSTILE = [
    # loopback, in every spelling that some resolver or library takes for it
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1.:80/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://1.2.3/",
    "http://0/",
    "http://0.0.0.0/",
    "http://①②⑦.0.0.1/",
    "http://127。0。0。1/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://foo.localhost/",
    # private, link-local, metadata, shared, reserved
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1",
    "http://169.254.169.254/latest/meta-data",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    # IPv6, and IPv4 inside of it
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:7f00:1::]/",
    # names of one's own network
    "http://metadata.google.internal/",
    "http://intranet/",
    "http://printer.local/",
    "http://nas.home.arpa/",
    # not a plain http URL
    "http://user:secret@example.com/",
    "http://user@example.com/",
    "http://@example.com/",
    "http://example.com#@127.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http://exa\\mple.com/",
    "http://exam ple.com/",
    "http://example.com/\r\nHost: internal",
    "http://example.com\t/",
    "http://example.com:99999/",
    "http:///path",
    "//example.com/",
    "example.com",
    "",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "sandbox://openai",
    "unix:///var/run/docker.sock",
    "http://" + "a" * 3_000 + ".com/",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(EgressRefused):
        Guard().check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://8.8.8.8/",
        "https://[2606:4700::1111]/v1",
        "https://bücher.example/v1",
        "https://example.com:8443/v1/?version=2",
        "https://my_host.example.com",
        "https://example.com/a@b",
    ],
)
def test_a_public_url_is_not(url: str) -> None:
    Guard().check_url(url)


def test_the_operator_may_allow_networks() -> None:
    guard = Guard(LOOPBACK)
    for url in ("http://127.0.0.1:11434/v1", "http://localhost:8080/", "http://[::1]/"):
        guard.check_url(url)
    for url in ("http://10.0.0.1/", "http://169.254.169.254/", "http://[::ffff:10.0.0.1]/"):
        with pytest.raises(EgressRefused):
            guard.check_url(url)
    Guard().check_address(ipaddress.ip_address("::ffff:8.8.8.8"))
    Guard("10.0.0.0/8, fd00::/8").check_address(ipaddress.ip_address("fd00::7"))


async def test_private_answers_of_a_resolver_are_not_dialled() -> None:
    answers = ["10.0.0.7", "93.184.216.34", "::ffff:127.0.0.1", "fe80::1%eth0"]

    async def lookup(_host: str, _port: int) -> list[str]:
        return answers

    guard = Guard(lookup=lookup)
    assert await guard.resolve("example.com", 443) == [("93.184.216.34", 443)]
    answers[:] = ["10.0.0.7", "169.254.169.254"]
    with pytest.raises(EgressRefused):
        await guard.resolve("example.com", 443)


async def test_a_literal_is_judged_although_no_resolver_is_asked() -> None:
    with pytest.raises(EgressRefused):
        await Guard().resolve("169.254.169.254", 80)
    assert await Guard().resolve("8.8.8.8", 80) == [("8.8.8.8", 80)]


async def test_a_name_that_rebinds_after_the_check_reaches_nothing(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(delta("secret", "stop")), DONE])
    port = upstream.url.rpartition(":")[2]
    asked = []

    async def lookup(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]  # public when it was registered

    guard = Guard(lookup=lookup)
    guard.check_url(f"http://models.example.com:{port}/v1")
    worker = make_worker(
        base_url=f"http://models.example.com:{port}/v1", transport=guarded_http(guard, Limits())
    )
    seen = await worker.run()
    assert (seen.kinds, seen.failed.status) == (["failed"], 502)
    assert asked == ["models.example.com"]
    assert upstream.requests == []


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(delta("Hi", "stop")), DONE])
    port = upstream.url.rpartition(":")[2]
    lookups = 0

    async def lookup(_host: str, _port: int) -> list[str]:
        nonlocal lookups
        lookups += 1
        return ["127.0.0.1"]

    guard = Guard(LOOPBACK, lookup)
    worker = make_worker(
        base_url=f"http://models.example.com:{port}/v1", transport=guarded_http(guard, Limits())
    )
    assert (await worker.run()).text == "Hi"
    assert lookups == 1
    assert upstream.requests[0].headers["host"] == f"models.example.com:{port}"


async def test_a_redirect_into_our_own_network_is_not_followed(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    upstream.answer(
        PATH, status=302, headers={"location": f"{upstream.url}/latest/meta-data"}, body=b""
    )
    upstream.answer("/latest/meta-data", body=b"secret")
    worker = make_worker()
    seen = await worker.run()
    assert seen.failed.upstream_status == 302
    assert [request.path for request in upstream.requests] == [PATH]


async def test_a_scheme_without_a_transport_goes_nowhere(make_worker: MakeWorker) -> None:
    worker = make_worker(base_url="gopher://example.com/v1")
    assert isinstance(worker.upstream, Upstream)
    assert (await worker.run()).failed.status == 502


def test_the_guard_asks_for_no_file(tmp_path: Path) -> None:
    with pytest.raises(EgressRefused):
        Guard().check_url((tmp_path / "x").as_uri())

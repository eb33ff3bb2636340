"""A start that cannot succeed says so in one line that names what to mend."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def start(var: Path, **settings: str) -> list[str]:
    """Run the exchange until it gives up; return the lines that it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BOURSE_")}
    done = subprocess.run(
        [sys.executable, "-m", "services"],
        cwd=ROOT,
        env={**env, "BOURSE_VAR": str(var), "BOURSE_EDGE_PORT": "0", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("BOURSE_EDGE_PORT", "abc", "BOURSE_EDGE_PORT"),
        ("BOURSE_EDGE_PORT", "99999", "BOURSE_EDGE_PORT"),
        ("BOURSE_TRACE_SAMPLE_RATIO", "often", "BOURSE_TRACE_SAMPLE_RATIO"),
        ("BOURSE_VAR", "/proc/nowhere", "/proc/nowhere"),
        ("BOURSE_BILLING_DATABASE_URL", "mysql://x", "billing"),
        ("BOURSE_PROVIDERS_EGRESS_ALLOW", "junk", "junk"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    var: Path, setting: str, value: str, named: str
) -> None:
    (line,) = start(var, **{setting: value})
    assert named in line


def test_a_port_in_use_is_named_in_one_line(var: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        (line,) = start(var, BOURSE_EDGE_PORT=port)
    assert port in line


@pytest.fixture
def var(tmp_path: Path) -> Path:
    return tmp_path / "var"

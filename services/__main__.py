"""Run services in this process: `python -m services` runs all, `… edge providers.worker` some.

With no name it also does what a first start needs (see services/quickstart.py): topics, an
account with keys and credit, the sandbox provider and those whose keys the environment holds.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from bourse import telemetry
from bourse.event_log import LogUnavailable
from bourse.event_log.spool import SpoolInUse
from bourse.process import Process
from bourse.settings import Settings

MODULES = {
    "billing": "services.billing.main",
    "ranking": "services.ranking.main",
    "providers.registry": "services.providers.registry_main",
    "routing": "services.routing.main",
    "providers.worker": "services.providers.worker_main",
    "edge": "services.edge.main",
}
"""Every service, in the order of starting: who is asked starts before who asks."""


async def serve(names: list[str]) -> None:
    """Start the named services (none: all) and run until told to stop."""
    with _starting(""):
        settings = Settings()
    process = Process(settings)
    chosen = [name for name in MODULES if name in names] if names else list(MODULES)
    telemetry.start(chosen, process.instance, settings)
    started = None
    try:
        if not names:
            with _starting("quickstart"):
                quickstart = importlib.import_module("services.quickstart")
                await quickstart.prepare(settings)
                started = quickstart.starter(process, settings)
        for name in chosen:
            with _starting(name):
                await importlib.import_module(MODULES[name]).start(process, settings)
    except BaseException:
        await process.close()
        raise
    await process.run(started)


class CannotStart(Exception):
    """What the operator has to mend, in one line."""


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """Turn what a wrong setting or a busy resource raises into one line; a bug stays a bug."""
    try:
        yield
    except ValidationError as error:
        prefix = f"BOURSE_{name.partition('.')[0].upper()}_" if name else "BOURSE_"
        wrong = [
            f"{'BOURSE_' if error.title == 'Settings' else prefix}{str(one['loc'][0]).upper()}: "
            f"{one['msg']}, not {one['input']!r}"
            for one in error.errors()
        ]
        raise CannotStart("; ".join(wrong)) from error
    except (OSError, ValueError, SpoolInUse, LogUnavailable, SQLAlchemyError) as error:
        about = f"{name}: " if name else ""
        raise CannotStart(f"{about}{type(error).__name__}: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="service", help=", ".join(MODULES))
    names = parser.parse_args().names
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        parser.error(f"unknown service {unknown[0]!r}; there are {', '.join(MODULES)}")
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        uvloop.run(serve(names))
    except CannotStart as error:
        sys.exit(f"bourse cannot start: {error}")


if __name__ == "__main__":
    main()

"""Run services in this process: `python -m services` runs all, `… edge providers.worker` some.

With no name it also does what a first start needs (see services/quickstart.py): topics, an
account with keys and credit, the sandbox provider and those whose keys the environment holds.
"""

import argparse
import importlib
import logging
import sys

import uvloop

from bourse import telemetry
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
    settings = Settings()
    process = Process(settings)
    chosen = [name for name in MODULES if name in names] if names else list(MODULES)
    telemetry.start(chosen, process.instance, settings)
    started = None
    try:
        if not names:
            quickstart = importlib.import_module("services.quickstart")
            await quickstart.prepare(settings)
            started = quickstart.starter(process, settings)
        for name in chosen:
            await importlib.import_module(MODULES[name]).start(process, settings)
    except BaseException:
        await process.close()
        raise
    await process.run(started)


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
    uvloop.run(serve(names))


if __name__ == "__main__":
    main()

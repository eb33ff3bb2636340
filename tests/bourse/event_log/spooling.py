"""A process that spools until it is killed: it says each name once `settle` has returned.

    python spooling.py DIRECTORY [LOG_URL]

With a log's URL it also forwards what it has spooled to the topic `generations`.
"""

import asyncio
import itertools
import sys
from pathlib import Path

from bourse.event_log import GENERATIONS, open_event_log
from bourse.event_log.envelope import envelope
from bourse.event_log.forwarder import Forwarder
from bourse.event_log.spool import Spool


async def main(directory: Path, url: str) -> None:
    spool = Spool(directory, segment_bytes=20_000)
    spool.open()
    forwarding = None
    if url:
        log = open_event_log(url)
        await log.start()
        forwarding = asyncio.create_task(Forwarder(spool, log, GENERATIONS, retention_s=0).run())
    boot = sys.argv[3] if len(sys.argv) > 3 else "boot"
    for number in itertools.count():
        name = f"{boot}:{number}"
        spool.intent(name, b"intent of " + name.encode())
        spool.checkpoint(name, b"checkpoint of " + name.encode())
        event = envelope(name, "Tested", "spooling", name, b"x" * 300)
        spool.settle(name, b"key", event.SerializeToString())
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        await asyncio.sleep(0.0005)
    if forwarding is not None:
        await forwarding


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))

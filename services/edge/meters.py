"""What edge counts of its requests."""

from bourse import telemetry
from services.edge.reply import Reply

CLIENT_LEFT = "left"


class Meters:
    """Requests by how they ended, and how long they took."""

    def __init__(self) -> None:
        self._requests = telemetry.counter(
            "bourse.edge.completions", "{request}", "Completions by status; `left`: no status."
        )
        self._seconds = telemetry.histogram(
            "bourse.edge.completion.duration", "s", "From the request's head to its last byte."
        )

    def answered(self, reply: Reply, seconds: float) -> None:
        status = str(reply.status or CLIENT_LEFT)
        self._requests.add(1, status=status)
        self._seconds.record(seconds, status=status)

"""Start and stop exporting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bourse.settings import Settings
from bourse.telemetry import spans

if TYPE_CHECKING:
    from bourse.telemetry.export import Exporter

_exporter: "Exporter | None" = None


def start(service_names: Sequence[str], instance: str, settings: Settings) -> None:
    """Begin to export to `settings.otlp_endpoint`; without one, do nothing.

    Call it once per process, after any fork.
    """
    global _exporter
    shutdown()
    if settings.otlp_endpoint:
        # A third of a second of imports, which only those who export pay.
        from bourse.telemetry.export import Exporter

        _exporter = Exporter(
            settings.otlp_endpoint,
            {
                "service.namespace": "bourse",
                "service.name": "+".join(service_names),
                "service.instance.id": instance,
            },
        )
        spans.trace_with(_exporter.tracer)


def shutdown() -> None:
    """Export what is left, within seconds, and stop."""
    global _exporter
    exporter, _exporter = _exporter, None
    spans.trace_with(None)
    if exporter is not None:
        exporter.shutdown()

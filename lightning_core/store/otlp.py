"""Where other programs report spans to a store: an OTLP endpoint, and the environment variables that name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

__all__ = ["OtlpEndpoint"]

# What somebody has set up for all signals, or for metrics and logs, is theirs.
_OTHERS = ("OTEL_EXPORTER_OTLP_", "OTEL_METRICS_", "OTEL_LOGS_")


@dataclass(frozen=True)
class OtlpEndpoint:
    """An OTLP/HTTP endpoint of a store, which takes the traces of any OpenTelemetry SDK.

    Attributes:
        url: Its base URL, to which exporters add ``/v1/traces``.
        headers: What requests must carry, such as a token. They are left out of ``repr``.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def variables(
        self, rollout_id: str, attempt_id: str | None, environment: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the variables by which an OpenTelemetry SDK reports one attempt here.

        Traces go here in any case. The variables for all signals are set only where ``environment`` configures no
        exporter itself: this endpoint takes no metrics and no logs, and its headers are nobody else's business.

        Args:
            rollout_id: Whose spans they are.
            attempt_id: Of which attempt; ``None`` for the latest.
            environment: What the program's environment holds so far.
        """
        headers = ",".join(f"{name}={quote(value, safe='')}" for name, value in self.headers.items())
        address = self.url.rstrip("/")
        owner = {"lightning.rollout_id": rollout_id}
        if attempt_id is not None:
            owner["lightning.attempt_id"] = attempt_id
        attributes = [f"{name}={quote(value, safe='')}" for name, value in owner.items()]
        if kept := environment.get("OTEL_RESOURCE_ATTRIBUTES", "").strip(" ,"):
            attributes.insert(0, kept)
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{address}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": headers,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(attributes),
        }
        if not any(name.startswith(_OTHERS) for name in environment):
            variables |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": address,
                "OTEL_EXPORTER_OTLP_HEADERS": headers,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
            }
        return variables

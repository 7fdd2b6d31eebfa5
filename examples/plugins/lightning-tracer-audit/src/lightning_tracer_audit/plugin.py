"""What lightning-core reads: the settings and the component."""

from pydantic import BaseModel, Field

from lightning_core import Component, hookimpl


class AuditConfig(BaseModel, extra="forbid"):
    events: dict[str, int] = Field(
        default={"os.system": 1, "subprocess.Popen": 2, "urllib.Request": 1},
        description="Python's audit events to record, and how many of their arguments to keep.",
    )


def make_audit(events: dict[str, int]):
    from .tracer import AuditTracer

    return AuditTracer(events)


@hookimpl
def lightning_tracers():
    summary = "Records the processes that an agent starts and the addresses that it opens."
    return [Component("audit", make_audit, AuditConfig, summary=summary, api_version=1)]

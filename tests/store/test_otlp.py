"""The variables by which another program reports to a store."""

import pytest

from lightning_core import InMemoryLightningStore
from lightning_core.store import OtlpEndpoint

ENDPOINT = OtlpEndpoint("http://store:4747/", {"authorization": "Bearer a=b,c"})
TRACES = {
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://store:4747/v1/traces",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=Bearer%20a%3Db%2Cc",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}


def test_traces_of_an_attempt_go_to_the_store() -> None:
    assert ENDPOINT.variables("ro-1", "at-1", {"PATH": "/bin"}) == {
        **TRACES,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://store:4747",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20a%3Db%2Cc",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_RESOURCE_ATTRIBUTES": "lightning.rollout_id=ro-1,lightning.attempt_id=at-1",
    }


@pytest.mark.parametrize(
    "own",
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_METRICS_EXPORTER",
        "OTEL_LOGS_EXPORTER",
    ],
)
def test_token_goes_to_no_endpoint_of_the_user(own: str) -> None:
    variables = ENDPOINT.variables("ro-1", "at-1", {own: "theirs"})
    variables.pop("OTEL_RESOURCE_ATTRIBUTES")
    assert variables == TRACES


def test_attributes_of_the_resource_are_kept() -> None:
    variables = ENDPOINT.variables("ro 1", None, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine, "})
    assert variables["OTEL_RESOURCE_ATTRIBUTES"] == "service.name=mine,lightning.rollout_id=ro%201"


def test_token_is_not_shown() -> None:
    assert "Bearer" not in repr(ENDPOINT)


def test_store_that_is_not_served_has_none() -> None:
    assert InMemoryLightningStore().otlp_endpoint is None

"""The REST interface: every method of a store is there, and the document says how."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from lightning_store_http import LightningStoreServer
from lightning_store_http.operations import OPERATIONS

from lightning_core.store import InMemoryLightningStore, LightningStore

_COVERED_BY = {
    "enqueue_rollout": "enqueue_rollouts",
    "dequeue_rollout": "dequeue_rollouts",
    "add_otel_span": "add_span",
}


@pytest.fixture
def server():
    # Waits are short, since a document cannot say that none should be asked for.
    with LightningStoreServer(InMemoryLightningStore(), max_wait=0.05) as server:
        yield server


@pytest.fixture
def call(server):
    def call(method: str, path: str, body: object = None):
        request = urllib.request.Request(
            f"{server.url}/v1{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {server.token}", "content-type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return call


def test_every_method_of_a_store_is_an_operation():
    """Trap 27: what the contract gets, the network gets, with every argument."""
    methods = {
        name: method
        for name, method in vars(LightningStore).items()
        if inspect.iscoroutinefunction(method) and name != "close"
    }
    assert methods.keys() - _COVERED_BY.keys() == OPERATIONS.keys()
    for name, operation in OPERATIONS.items():
        expected = set(inspect.signature(methods[name]).parameters) - {"self"}
        given = set(operation.arguments.model_fields)
        if name == "enqueue_rollouts":
            expected = {"rollouts"}
        # What the network adds: an id that the client draws, and deleted rollouts.
        assert given - {"skip_unknown"} == expected | (
            {"resources_id"} if name == "add_resources" else set()
        ), name


def test_a_rollout_through_its_life(call):
    queued, _ = call("POST", "/enqueue", {"rollouts": [{"input": {"x": 1}, "mode": "train"}, {"input": 2}]})
    assert (queued["input"], queued["status"], queued["idempotency_key"]) == ({"x": 1}, "queuing", None)
    [taken] = call("POST", "/dequeue", {"limit": 1, "worker_id": "w"})
    name, attempt = taken["rollout_id"], taken["attempt"]["attempt_id"]
    assert name == queued["rollout_id"]
    assert call("POST", f"/rollouts/{name}/attempts/{attempt}/sequence-ids", {}) == 1
    span = {
        "rollout_id": name,
        "attempt_id": attempt,
        "trace_id": "1" * 32,
        "span_id": "2" * 16,
        "name": "call",
    }
    assert call("POST", "/spans", {"spans": [span]}) == 1
    assert call("POST", "/spans", {"spans": [span]}) == 0
    assert call("PUT", "/span", {"span": span | {"span_id": "3" * 16}})["sequence_id"] == 3
    assert [one["sequence_id"] for one in call("GET", f"/rollouts/{name}/spans?attempt_id=latest")] == [2, 3]
    assert len(call("GET", f"/rollouts/{name}/spans?span_id={'2' * 16}&limit=5")) == 1
    assert call("POST", "/leases", {"worker_id": "w", "attempts": [[name, attempt], [name, "at-none"]]}) == [
        "at-none"
    ]
    assert call("POST", "/wait", {"rollout_ids": [name], "timeout": 0}) == []
    report = {"status": "failed", "reason": "no_resources", "metadata": {"error": "e"}}
    ended = call("PATCH", f"/rollouts/{name}/attempts/latest", report)
    assert (ended["status"], ended["reason"], ended["metadata"]) == (
        "failed",
        "no_resources",
        {"error": "e"},
    )
    assert [one["rollout_id"] for one in call("POST", "/wait", {"rollout_ids": [name]})] == [name]
    assert call("GET", f"/rollouts/{name}")["status"] == "failed"
    assert call("GET", f"/rollouts/{name}/latest-attempt") == ended
    assert call("GET", f"/rollouts/{name}/attempts?status=failed&status=timeout") == [ended]
    assert call("PATCH", f"/rollouts/{name}", {"metadata": {"note": 1}})["metadata"] == {"note": 1}
    assert call("PATCH", f"/rollouts/{name}", {"input": 3}) == 409
    assert [
        one["input"] for one in call("GET", "/rollouts?status=failed&status=queuing&descending=true")
    ] == [2, {"x": 1}]
    assert [one["input"] for one in call("GET", "/rollouts?mode=train")] == [{"x": 1}]
    assert call("GET", "/statistics")["spans"] == 2
    assert call("POST", "/start", {"input": 4, "worker_id": "w"})["attempt"]["worker_id"] == "w"
    assert call("POST", "/vacuum", {"before": ended["end_time"] + 1})["rollouts"] == {"failed": 1}
    assert call("GET", f"/rollouts/{name}") == 404
    assert call("GET", f"/rollouts/{name}/latest-attempt") == 404


def test_resources_workers_and_runs(call):
    assert call("GET", "/latest-resources") == 404
    llm = {"resource_type": "llm", "endpoint": "http://localhost/v1", "model": "m"}
    added = call("POST", "/resources", {"resources": {"llm": llm}})
    assert call("GET", "/latest-resources") == added
    updated = call("PUT", f"/resources/{added['resources_id']}", {"resources": {"llm": llm | {"model": "n"}}})
    assert updated["version"] == 2
    assert call("GET", f"/resources/{added['resources_id']}")["resources"]["llm"]["model"] == "n"
    assert call("GET", "/resources/none") == 404
    assert call("POST", "/resources", {"resources": {"x": {"resource_type": "unheard-of"}}}) == 422
    assert call("PUT", "/workers/w", {"heartbeat_stats": {"cpu": 0.5}})["heartbeat_stats"] == {"cpu": 0.5}
    assert [worker["worker_id"] for worker in call("GET", "/workers")] == ["w"]
    assert call("PUT", "/runs", {"run_id": "r", "settings": {"a": 1}}) is None
    assert [run["settings"] for run in call("GET", "/runs?run_id=r")] == [{"a": 1}]
    assert call("GET", "/runs/r/state") == 404
    assert call("PUT", "/runs/r/state", {"state": {"step": 3}}) is None
    assert call("GET", "/runs/r/state") == {"step": 3}


def test_batches_may_be_json(call):
    operations = [["update_worker", {"worker_id": "w"}], ["no_such", {}], ["dequeue_rollouts", {"limit": -1}]]
    [done, unknown, wrong] = call("POST", "/batch", {"operations": operations})
    assert done[0]
    assert done[1]["worker_id"] == "w"
    assert unknown == [False, {"type": "RequestError", "message": "there is no operation 'no_such'"}]
    assert wrong[1]["message"].startswith("limit:")


def test_a_repeated_request_with_its_number_is_not_carried_out_again(call, server):
    batch = {
        "operations": [["enqueue_rollouts", {"rollouts": [{"input": 1}]}]],
        "client": "a-client",
        "number": 1,
    }
    first = call("POST", "/batch", batch)
    assert call("POST", "/batch", batch) == first
    assert call("POST", "/batch", batch | {"number": 2, "below": 2}) != first
    assert call("POST", "/batch", batch) == 409
    assert asyncio.run(server.store.statistics()).rollouts == {"queuing": 2}


def test_the_document_describes_every_operation(call):
    document = call("GET", "/openapi.json")
    assert document["openapi"].startswith("3.1")
    described = {
        one["operationId"]: one for methods in document["paths"].values() for one in methods.values()
    }
    rest = {name for name, operation in OPERATIONS.items() if operation.method is not None}
    assert described.keys() == rest | {"batch", "health", "store"}
    assert document["security"] == [{"token": []}]
    assert described["health"]["security"] == []
    for one in described.values():
        assert {"400", "413", "422", "500"} <= one["responses"].keys()
    references = set(_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def _references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing_wrong(server, tmp_path):
    """No 5xx, no answer that the document does not describe, no bad request that is accepted."""
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"{server.url}/v1/openapi.json", "--header", f"Authorization: Bearer {server.token}"),
            *("--phases", "coverage,fuzzing", "--max-examples", "3", "--seed", "1", "--no-color"),
            # Whether a rollout or attempt exists is nothing that a document could say.
            *("--exclude-checks", "positive_data_acceptance"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"Tested: {len([one for one in OPERATIONS.values() if one.method]) + 3}" in done.stdout

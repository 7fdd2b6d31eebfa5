"""Which models of a run are put behind its LLM proxy, and where stored ones are found again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from lightning_core import LLM, PromptTemplate, ProxyLLM, Trainer, algo, rollout
from lightning_core.bridge import run_sync
from lightning_core.store import InMemoryLightningStore
from lightning_core.trainer.proxied import behind_proxy
from lightning_core.trainer.resumption import with_endpoints
from lightning_core.types import NamedResources

MODEL = LLM(endpoint="http://engine/v1", model="m", api_key="secret", sampling_parameters={"n": 1})
REMOTE = ProxyLLM(endpoint="http://elsewhere/v1", model="r")
PROMPT = PromptTemplate(template="{question}")


def proxied(host: str, model: str = "m", **more: Any) -> ProxyLLM:
    return ProxyLLM(endpoint=f"http://{host}/v1", model=model, **more)


class Proxy:
    """Notes what it is put in front of."""

    def __init__(self, own: str | None = None) -> None:
        self.own = own
        self.seen: list[Any] = []

    @contextmanager
    def in_front_of(self, llms: Mapping[str, LLM], store: Any) -> Iterator[dict[str, ProxyLLM]]:
        self.seen.append((dict(llms), store))
        own = {"main_llm": proxied("proxy", self.own)} if self.own is not None else {}
        try:
            yield {name: proxied("proxy", llm.model) for name, llm in llms.items()} or own
        finally:
            self.seen.append("left")

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "own", "found"),
    [
        ({"a": MODEL, "p": PROMPT}, None, {"a": proxied("proxy"), "p": PROMPT}),
        ({"a": MODEL, "b": REMOTE}, "own", {"a": proxied("proxy"), "b": REMOTE}),
        ({"p": PROMPT}, "own", {"p": PROMPT, "main_llm": proxied("proxy", "own")}),
        (None, "own", {"main_llm": proxied("proxy", "own")}),
        ({"p": PROMPT}, None, {"p": PROMPT}),
        (None, None, None),
    ],
)
def test_models_that_a_run_starts_from_are_behind_the_proxy(
    given: NamedResources | None, own: str | None, found: NamedResources | None
):
    proxy, store = Proxy(own), InMemoryLightningStore()
    with behind_proxy(proxy, given, store) as resources:
        assert resources == found
        llms = {name: each for name, each in (given or {}).items() if type(each) is LLM}
        assert proxy.seen == [(llms, store)]
    assert proxy.seen[1:] == ["left"]


def test_a_run_whose_models_are_all_behind_a_proxy_needs_no_other():
    proxy = Proxy("own")
    with behind_proxy(proxy, {"b": REMOTE}, InMemoryLightningStore()) as resources:
        assert resources == {"b": REMOTE}
    assert proxy.seen == []


@pytest.mark.parametrize("proxy", [None, object()])
def test_what_cannot_be_in_front_of_models_is_left_to_the_algorithm(proxy: object):
    given: NamedResources = {"a": MODEL}
    with behind_proxy(proxy, given, InMemoryLightningStore()) as resources:
        assert resources is given


def test_the_trainer_leaves_the_proxy_when_the_rollouts_are_done_also_after_an_error():
    proxy = Proxy()

    @rollout
    def agent(task: float, llm: LLM) -> float:
        assert proxy.seen[1:] == []
        return float(llm.get_base_url().startswith("http://proxy/rollout/"))

    @algo
    async def broken(*, store: Any, initial_resources: Any, algorithm: Any) -> None:
        assert initial_resources == {"main_llm": proxied("proxy")}
        queued = await store.enqueue_rollout(1.0)
        [done] = await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])
        raise ZeroDivisionError(done.status)

    train = Trainer(tracer="dummy", llm_proxy=proxy, algorithm=broken, initial_resources={"main_llm": MODEL})
    with pytest.raises(ZeroDivisionError, match="succeeded"):
        train.fit(agent, [1.0])
    assert proxy.seen[1:] == ["left"]
    [run] = run_sync(train.store.query_runs())
    assert run.settings["llm_proxy"] == "Proxy"
    latest = run_sync(train.store.get_latest_resources())
    assert latest is not None
    assert "secret" not in latest.model_dump_json()


@pytest.mark.parametrize(
    ("stored", "today", "found"),
    [
        # The same kinds: only the place is another one.
        (
            {"a": MODEL.model_copy(update={"model": "tuned"})},
            {"a": LLM(endpoint="http://new/v1", model="m", api_key="new")},
            {"a": LLM(endpoint="http://new/v1", model="tuned", api_key="new", sampling_parameters={"n": 1})},
        ),
        ({"a": proxied("old", "tuned")}, {"a": proxied("new")}, {"a": proxied("new", "tuned")}),
        # Begun without a proxy, and with one that is there no more.
        (
            {"a": MODEL},
            {"a": proxied("new", api_key="token")},
            {"a": proxied("new", api_key="token", sampling_parameters={"n": 1})},
        ),
        (
            {"a": proxied("old", "tuned")},
            {"a": MODEL},
            {"a": LLM(endpoint="http://engine/v1", model="tuned", api_key="secret")},
        ),
        # Under a name of the algorithm's own, the one proxy is meant; of two, none.
        ({"mine": proxied("old")}, {"a": proxied("new"), "b": proxied("new", "n")}, {"mine": proxied("new")}),
        ({"mine": proxied("old")}, {"a": proxied("new"), "b": REMOTE}, {"mine": proxied("old")}),
        ({"mine": MODEL, "p": PROMPT}, {"a": proxied("new"), "p": MODEL}, {"mine": MODEL, "p": PROMPT}),
    ],
)
def test_stored_models_are_where_those_of_today_are(
    stored: NamedResources, today: NamedResources, found: NamedResources
):
    assert with_endpoints(stored, today) == found

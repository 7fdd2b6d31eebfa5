"""The engine serves a real model, can be stopped at any time, and leaves no process behind."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import openai
import pytest
from lightning_engine_llamacpp import LlamaCppEngine

from lightning_core import LLM, Trainer, resolve, rollout

linux = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="waits on a process descriptor, which Linux has"
)


def small(**settings: object) -> LlamaCppEngine:
    return resolve("engine", {"type": "llamacpp", "n_parallel": 2, "context": 512, **settings})


def client(llm: LLM, **options: object) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=llm.get_base_url(), api_key=llm.api_key, max_retries=0, timeout=60, **options
    )


def ask(llm: LLM, question: str = "Calculate 3 + 4.", **options: object):
    with client(llm) as api:
        return api.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": question}], **{"max_tokens": 4, **options}
        )


def server_pid(engine: LlamaCppEngine) -> int:
    assert engine._process is not None
    return engine._process.pid


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with small(seed=1) as llm:
        yield llm


def test_the_default_model_answers(llm: LLM) -> None:
    answer = ask(llm, max_tokens=6)
    assert answer.choices[0].message.content
    assert answer.model == llm.model == "SmolLM2-135M-Instruct.Q4_1"
    assert answer.usage.completion_tokens == 6
    assert llm.endpoint.startswith("http://127.0.0.1:")
    assert llm.endpoint.endswith("/v1")


def test_logprobs_carry_the_ids_of_the_sampled_tokens(llm: LLM) -> None:
    # The full list, which llama.cpp gives in its own way, is what the ids are compared with.
    full = {"verbose": True, "return_tokens": True}
    answer = ask(llm, max_tokens=8, logprobs=True, top_logprobs=1, temperature=0, extra_body=full)
    tokens = answer.choices[0].logprobs.content
    assert [token.id for token in tokens] == answer.model_extra["__verbose"]["tokens"]
    assert all(token.logprob <= 0 for token in tokens)


def test_a_character_of_several_tokens_shows_as_too_few_entries(llm: LLM) -> None:
    answer = ask(llm, "Repeat: 👍👍👍👍", max_tokens=12, logprobs=True, top_logprobs=1, temperature=0)
    assert "👍" in answer.choices[0].message.content
    assert len(answer.choices[0].logprobs.content) < answer.usage.completion_tokens


def test_the_seed_makes_answers_repeatable(llm: LLM) -> None:
    one, two = (ask(llm, "Tell me a story.", temperature=1.0, max_tokens=8) for _ in range(2))
    other = ask(llm, "Tell me a story.", temperature=1.0, max_tokens=8, seed=2)
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].message.content != other.choices[0].message.content


def test_more_requests_than_slots_are_all_answered(llm: LLM) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: ask(llm, f"Calculate {n} + 1."), range(6)))
    assert len({answer.id for answer in answers}) == 6


def test_a_request_beyond_the_context_is_refused(llm: LLM) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        ask(llm, "word " * 600)


def test_web_pages_of_other_origins_are_not_let_in(llm: LLM) -> None:
    request = urllib.request.Request(f"{llm.endpoint}/models", headers={"Origin": "http://elsewhere.example"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers.get("Access-Control-Allow-Origin") in (None, "")


def test_it_can_be_started_and_stopped_repeatedly() -> None:
    engine = small()
    engine.stop()
    for _ in range(2):
        llm = engine.start()
        assert engine.start() == llm
        assert ask(llm).usage.completion_tokens > 0
        engine.stop()
        engine.stop()
        with pytest.raises(openai.APIConnectionError):
            ask(llm)


def test_a_server_that_died_is_started_again() -> None:
    engine = small()
    try:
        first = engine.start()
        engine._process.kill()
        engine._process.wait()
        second = engine.start()
        assert second.endpoint != first.endpoint
        assert ask(second).usage.completion_tokens > 0
    finally:
        engine.stop()


def test_stopping_does_not_wait_for_requests_under_way() -> None:
    engine = small()
    body = {"prompt": "Once", "n_predict": 400, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        engine.start().endpoint.removesuffix("/v1") + "/completion", json.dumps(body).encode()
    )
    with (
        urllib.request.urlopen(request, timeout=30) as answer,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        assert answer.readline()
        pool.submit(engine.stop).result(timeout=10)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()


def test_the_key_is_asked_for() -> None:
    engine = small(api_key="open sesame")
    with engine as llm:
        assert llm.api_key == "open sesame"
        assert "sesame" not in repr(llm)
        assert ask(llm).usage.completion_tokens > 0
        with pytest.raises(openai.AuthenticationError):
            ask(llm.model_copy(update={"api_key": "wrong"}))


@linux
def test_ctrl_c_does_not_reach_the_server_and_stop_ends_it() -> None:
    engine = small()
    with engine as llm:
        ended = os.pidfd_open(server_pid(engine))
        os.kill(server_pid(engine), signal.SIGINT)
        assert ask(llm).usage.completion_tokens > 0
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)


@linux
def test_the_server_ends_with_a_process_that_is_killed() -> None:
    script = (
        "import sys\n"
        "from lightning_engine_llamacpp import LlamaCppEngine\n"
        "engine = LlamaCppEngine(n_parallel=1, context=64)\n"
        "engine.start()\n"
        "print(engine._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        ended = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)


def test_the_trainer_serves_agents_with_it() -> None:
    @rollout
    def agent(task: int, llm: LLM) -> float:
        return float(
            ask(llm, f"Calculate {task} + 1.", **llm.sampling_parameters).usage.completion_tokens == 2
        )

    engine = {"type": "llamacpp", "n_parallel": 1, "context": 128, "sampling_parameters": {"max_tokens": 2}}
    result = Trainer(tracer="dummy", algorithm="baseline", engine=engine).fit(agent, [1, 2])
    assert result.metrics[0]["mean_reward"] == 1.0

"""The points of a check: each looks at one thing that may be wrong with a rollout, and says how to put it right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field

from lightning_core.litagent.functional import FunctionalLitAgent
from lightning_core.trainer.check_evidence import REMEDIES, Evidence
from lightning_core.types import LLM, Attempt, NamedResources, RolloutV2
from lightning_core.types._model import Model

if TYPE_CHECKING:
    from lightning_core.adapter.base import TraceAdapter
    from lightning_core.algorithm.base import Need
    from lightning_core.litagent.agent import LitAgent
    from lightning_core.trainer.check_watch import Watch

__all__ = ["CheckPoint", "Level", "Seen", "check_points"]

Level = Literal["ok", "warning", "problem"]

_UNREAD: Final = "read streams to their end, and await background work before the agent returns"
_INSTRUMENTED_BY_OTEL: Final = ("openai", "anthropic", "langchain", "litellm", "openai-agents")


class CheckPoint(Model):
    """What was found about one thing.

    Attributes:
        name: What was looked at, such as ``reward``.
        level: ``problem`` if training on it would fail or learn the wrong thing, ``warning`` if it may.
        text: What was found.
        fix: What to do about it; empty where nothing is to be done.
        details: Lines that say more, such as a traceback.
    """

    model_config = ConfigDict(defer_build=True, extra="forbid")

    name: str
    level: Level
    text: str
    fix: str = ""
    details: list[str] = Field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return the point as text, line by line."""
        lines = [
            f"  {self.level + ':':<9}{self.name}: {self.text}",
            *(f"      {line}" for line in self.details),
        ]
        return [*lines, f"      fix: {self.fix}"] if self.fix else lines


@dataclass(frozen=True)
class Seen:
    """All that is known of the rollout of a check.

    Attributes:
        agent: The agent that ran.
        rollout: Its rollout.
        attempt: The only attempt; ``None`` if it was never begun.
        evidence: Its spans.
        watch: What was seen while it ran.
        resources: What the agent was given.
        tracer: What the tracer is called.
        adapter: Turns spans into training data.
        needs: What the algorithm needs.
        chosen: Whether an algorithm was chosen; else what it will need is not known yet.
    """

    agent: LitAgent[Any]
    rollout: RolloutV2
    attempt: Attempt | None
    evidence: Evidence
    watch: Watch
    resources: NamedResources
    tracer: str
    adapter: TraceAdapter[Any] | None
    needs: frozenset[Need]
    chosen: bool

    @property
    def unseen(self) -> Level:
        """How bad it is that calls were made and not recorded."""
        return "problem" if not self.chosen or self.needs - {"rewards"} else "warning"

    def level(self, need: Need) -> Level:
        """How bad it is that something is missing; what an agent did not come to, because it failed, is no news."""
        return "problem" if need in self.needs and self.rollout.status == "succeeded" else "warning"


def check_points(seen: Seen) -> list[CheckPoint]:
    """Return every point, in the order in which to read them."""
    points = [_rollout(seen), *_awaited(seen), _calls(seen), _tracer(seen), *_tokens(seen), _reward(seen)]
    points += [_spans(seen), _adapter(seen), *_settings(seen), *_logged(seen)]
    return points


def _rollout(seen: Seen) -> CheckPoint:
    rollout, attempt = seen.rollout, seen.attempt
    if rollout.status == "succeeded":
        seconds = (rollout.end_time or rollout.start_time) - rollout.start_time
        return CheckPoint(name="rollout", level="ok", text=f"succeeded in {seconds:.2f} s")
    if attempt is None:
        return CheckPoint(
            name="rollout",
            level="problem",
            text=f"it is still {rollout.status}: no runner has taken it",
            fix="see that max_rollouts of trainer and runner is not 0",
        )
    error = str(attempt.metadata.get("error") or attempt.metadata.get("detail") or "no reason was given")
    return CheckPoint(
        name="rollout",
        level="problem",
        text=f"{rollout.status}, {attempt.reason}: {error}",
        fix=_way_out(str(attempt.reason), error),
        details=str(attempt.metadata.get("traceback", "")).splitlines(),
    )


def _way_out(reason: str, error: str) -> str:
    if "returned a coroutine" in error:
        return "make the agent async and await what it calls: `async def`, and `return await ...`"
    return {
        "agent_error": "mend the agent where the traceback says",
        "timeout": "give it more time (timeout_seconds), or find out what it waits for",
        "no_resources": (
            "give Trainer(initial_resources=...) or an engine; on the command line --model and --endpoint"
        ),
        "cancelled": "ask the hook that vetoed it, if one did",
        "infrastructure": "what broke is not the agent, but the tracer or a hook around it: see the message",
    }.get(reason, "see the message")


def _awaited(seen: Seen) -> Iterator[CheckPoint]:
    for name, times in Counter(seen.watch.unawaited).items():
        often = f", {times} times" if times > 1 else ""
        yield CheckPoint(
            name="await",
            level="problem",
            text=f"coroutine {name!r} was called and never awaited{often}: what it does has not happened",
            fix=f"await {name.rpartition('.')[2]}(...) inside an async agent, or use asyncio.run in a sync one",
        )


def _calls(seen: Seen) -> CheckPoint:
    evidence = seen.evidence
    if not evidence.calls:
        return CheckPoint(
            name="llm calls",
            level=seen.level("llm_calls"),
            text="none was recorded",
            fix="see the tracer below" if seen.watch.sent else REMEDIES["llm_calls"],
        )
    models = sorted({call.model for call in evidence.calls if call.model})
    failed = len(evidence.calls) - len(evidence.answered)
    text = _number(len(evidence.calls), "recorded call") + (f" of {', '.join(models)}" if models else "")
    if failed:
        return CheckPoint(
            name="llm calls",
            level="warning" if evidence.answered else "problem",
            text=f"{text}, {failed} of them without an answer",
            fix="see the errors in these spans, and read streams to their end",
        )
    return CheckPoint(name="llm calls", level="ok", text=text)


def _tracer(seen: Seen) -> CheckPoint:
    """Whether tracer and instrumentation agree with what the agent uses."""
    watch = seen.watch
    answered = [call for call in watch.sent if call.answered]
    silent = [name for name in watch.imported if name not in watch.instrumented]
    on = f"; instrumented: {', '.join(sorted(watch.instrumented))}" if watch.instrumented else ""
    if seen.evidence.calls or (not answered and (watch.instrumented or not silent)):
        return CheckPoint(name="tracer", level="ok", text=f"{seen.tracer}{on}")
    if not answered:
        return CheckPoint(
            name="tracer",
            level="warning",
            text=f"{', '.join(silent)} is imported, and the tracer {seen.tracer} would not see its calls",
            fix=_instrument(silent),
        )
    hosts = ", ".join(sorted({call.host for call in answered}))
    made = _number(len(answered), "call")
    text = f"the agent made {made} of a language model at {hosts}, and the tracer {seen.tracer} has recorded none"
    if silent:
        text, fix = f"{text}: {', '.join(silent)} is not instrumented", _instrument(silent)
    elif not all(call.traced for call in answered):
        text += ": they were made outside of the rollout's context, in a thread that does not have it"
        fix = (
            "start the thread's work with contextvars.copy_context().run(function), or use asyncio.to_thread"
        )
    elif watch.unended:
        text += (
            f": {_number(watch.unended, 'span')} had not ended, such as that of a stream not read to its end"
        )
        fix = _UNREAD
    elif watch.imported:
        text += f", though {', '.join(watch.imported)} is instrumented"
        fix = (
            "if the program instruments it by itself, set its global tracer provider before the trainer starts; and "
            "see that the installed versions of library and instrumentation fit"
        )
    else:
        text += ": they were made without a client that can be instrumented"
        fix = 'send them through Trainer(llm_proxy="gateway"), which records what passes'
    return CheckPoint(name="tracer", level=seen.unseen, text=text, fix=fix)


def _instrument(names: Sequence[str]) -> str:
    known = [name for name in names if name in _INSTRUMENTED_BY_OTEL]
    if not known:
        return 'send its calls through Trainer(llm_proxy="gateway"), which records what passes'
    listed = ", ".join(f'"{name}"' for name in known)
    return (
        f'Trainer(tracer={{"type": "otel", "instrument": [{listed}]}}), after '
        f"pip install 'lightning-tracer-otel[{','.join(known)}]'"
    )


def _tokens(seen: Seen) -> Iterator[CheckPoint]:
    evidence = seen.evidence
    if not evidence.answered:
        return
    found, without = evidence.token_ids()
    details = [f"{times} x {source}" for source, times in found.items()]
    details += [f"{times} x missing: {reason}" for reason, times in without.items()]
    missing, every = sum(without.values()), sum(found.values()) + sum(without.values())
    if not missing:
        yield CheckPoint(
            name="token ids", level="ok", text=f"in all of {_number(every, 'call')}", details=details
        )
    else:
        yield CheckPoint(
            name="token ids",
            level="warning" if found else seen.level("token_ids"),
            text=f"missing in {missing} of {_number(every, 'call')}",
            fix=REMEDIES["token_ids"],
            details=details,
        )
    lacking = evidence.lack("logprobs")
    if "logprobs" in seen.needs:
        yield CheckPoint(
            name="log-probabilities",
            level="ok" if lacking is None else seen.level("logprobs"),
            text=lacking or "recorded",
            fix="" if lacking is None else REMEDIES["logprobs"],
        )


def _reward(seen: Seen) -> CheckPoint:
    evidence = seen.evidence
    lacking = evidence.lack("rewards")
    if lacking is not None:
        return CheckPoint(name="reward", level=seen.level("rewards"), text=lacking, fix=REMEDIES["rewards"])
    invalid = sum(reward.value is None for reward in evidence.rewards)
    final = evidence.final_reward
    if invalid:
        return CheckPoint(
            name="reward",
            level="problem",
            text=f"{invalid} of {len(evidence.rewards)} reward spans hold no finite number; the last that does: "
            f"{final:g}",
            fix="record finite numbers only; emit nothing where there is no reward",
        )
    values = ", ".join(f"{reward.value:g}" for reward in evidence.rewards)
    for one, other in zip(evidence.rewards, evidence.rewards[1:], strict=False):
        if one.after == other.after:
            what = "the same reward twice" if one.value == other.value else "two rewards"
            return CheckPoint(
                name="reward",
                level="warning",
                text=f"{what} with no call of a model between them ({values}): each counts, and the last is the "
                "final one",
                fix="record it once: return it, or emit it, or have @reward record it",
            )
    count = len(evidence.rewards)
    text = f"{final:g}" if count == 1 else f"{count} rewards ({values}); the last is the final one"
    return CheckPoint(name="reward", level="ok", text=text)


def _spans(seen: Seen) -> CheckPoint:
    """Whether all that was recorded is there, and of this rollout."""
    spans, watch = seen.evidence.spans, seen.watch
    known = {span.span_id for span in spans}
    lost = watch.traced - known
    if lost or (seen.attempt is not None and "lost_spans" in seen.attempt.metadata):
        said = seen.attempt.metadata.get("lost_spans") if seen.attempt is not None else None
        return CheckPoint(
            name="spans",
            level="problem",
            text=str(
                said or f"{len(lost)} of {len(watch.traced)} spans that were recorded did not reach the store"
            ),
            fix="see the errors below; a span whose attributes cannot be stored is one cause",
        )
    answered = [call for call in watch.sent if call.answered]
    calls = len(seen.evidence.calls)
    if 0 < calls < len(answered):
        untraced = sum(not call.traced for call in answered)
        return CheckPoint(
            name="spans",
            level=seen.unseen,
            text=f"the agent made {_number(len(answered), 'call')} of a language model, and {calls} are recorded"
            + (f"; {untraced} were made outside of the rollout's context" if untraced else ""),
            fix="start threads with contextvars.copy_context().run(function), read streams to their end, and await "
            "background work before the agent returns",
        )
    if watch.unended:
        return CheckPoint(
            name="spans",
            level="warning",
            text=f"{_number(watch.unended, 'span')} had not ended when the agent had, and may come too late",
            fix=_UNREAD,
        )
    orphans = [span for span in spans if span.parent_id and span.parent_id not in known]
    if orphans:
        return CheckPoint(
            name="spans",
            level="warning",
            text=f"{len(orphans)} of {len(spans)} spans belong to a trace that is not the rollout's, such as "
            f"{orphans[0].name!r}: their parents were not recorded",
            fix="open such parents inside of the agent, with the tracer's own provider or a global one that it hears",
        )
    traces = len({span.trace_id for span in spans})
    several = f", in {traces} traces" if traces > 1 else ""
    return CheckPoint(name="spans", level="ok", text=f"{len(spans)} stored{several}")


def _adapter(seen: Seen) -> CheckPoint:
    adapter = seen.adapter
    if adapter is None:
        return CheckPoint(name="adapter", level="ok", text="none; an algorithm that asks for one will say so")
    name = type(adapter).__name__
    try:
        explanation = adapter.explain(seen.evidence.spans)
        if explanation.results:
            adapter.adapt(seen.evidence.spans)
    except Exception as error:
        return CheckPoint(
            name="adapter",
            level="problem",
            text=f"{name} failed: {type(error).__name__}: {error}",
            fix="that is an error of the adapter: report it, with the spans",
        )
    head, *details = explanation.lines()
    if explanation.results:
        return CheckPoint(name="adapter", level="ok", text=f"{name}: {head}", details=details)
    needed = bool(seen.needs - {"rewards"}) and seen.rollout.status == "succeeded"
    return CheckPoint(
        name="adapter",
        level="problem" if needed else "warning",
        text=f"{name}: {head}",
        fix="see the points above" if not seen.evidence.calls else "see why each call was left out, below",
        details=details,
    )


def _settings(seen: Seen) -> Iterator[CheckPoint]:
    """What was set and had no effect."""
    found = [(text, "leave it out, or use what it is for") for text in seen.watch.idle]
    if seen.rollout.status == "succeeded":
        agent: Any = seen.agent
        if isinstance(agent, FunctionalLitAgent):
            taken: set[str] = agent.taken(seen.resources)
            found += [
                (
                    f"the agent takes no resource {name!r} ({type(resource).__name__}), so tuning it changes nothing",
                    "give the agent a parameter for it: llm, prompt_template or resources",
                )
                for name, resource in seen.resources.items()
                if name not in taken
            ]
        for name, resource in seen.resources.items():
            if isinstance(resource, LLM) and seen.watch.sent:
                found += _unused(name, resource, seen)
    for text, fix in found:
        yield CheckPoint(name="settings", level="warning", text=text, fix=fix)
    if not found:
        yield CheckPoint(name="settings", level="ok", text="none is known to have had no effect")


def _unused(name: str, llm: LLM, seen: Seen) -> Iterator[tuple[str, str]]:
    """What of a model's endpoint, name and sampling parameters reached no call."""
    endpoint = llm.get_base_url()
    host = urlsplit(endpoint).netloc
    calls = [call.body for call in seen.watch.sent if call.host == host]
    if not calls:
        others = ", ".join(sorted({call.host for call in seen.watch.sent}))
        yield (
            f"no call went to the endpoint of {name!r} ({endpoint}), but to {others}",
            f"make the client with base_url={name}.get_base_url() and api_key={name}.api_key",
        )
        return
    bodies = [body for body in calls if body]
    if not bodies:
        return
    models = {str(body.get("model")) for body in bodies}
    if llm.model not in models:
        yield (
            f"no call asked for the model of {name!r} ({llm.model}), but for {', '.join(sorted(models))}",
            f"pass model={name}.model",
        )
    ignored = [key for key, value in llm.sampling_parameters.items() if not _carried(key, value, bodies)]
    if ignored:
        yield (
            f"no call carried {', '.join(f'{key}={llm.sampling_parameters[key]!r}' for key in ignored)} of {name!r}",
            f"pass **{name}.sampling_parameters",
        )


def _carried(key: str, value: Any, bodies: Sequence[Mapping[str, Any]]) -> bool:
    return any(key in body and body[key] == value for body in bodies)


def _logged(seen: Seen) -> Iterator[CheckPoint]:
    for line in seen.watch.log:
        error = line.level >= logging.ERROR
        yield CheckPoint(
            name="log",
            level="problem" if error else "warning",
            text=line.text,
            fix="see the traceback in the log: `lightning-core --debug doctor run`" if error else "",
        )


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

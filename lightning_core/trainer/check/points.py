"""The points of a check: each looks at one thing that may be wrong with a rollout, and says how to put it right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_core.adapter import advice
from lightning_core.trainer.check.evidence import Evidence
from lightning_core.trainer.check.idle import find_idle
from lightning_core.trainer.check.report import CheckPoint, Level, counted
from lightning_core.types import Attempt, NamedResources, RolloutV2

if TYPE_CHECKING:
    from lightning_core.adapter.base import TraceAdapter
    from lightning_core.algorithm.base import Need
    from lightning_core.litagent.agent import LitAgent
    from lightning_core.trainer.check.watch import Watch

__all__ = ["Seen", "check_points"]


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
            fix="see the tracer below" if seen.watch.sent else evidence.remedy("llm_calls"),
        )
    models = sorted({call.model for call in evidence.calls if call.model})
    failed = len(evidence.calls) - len(evidence.answered)
    text = counted(len(evidence.calls), "recorded call") + (f" of {', '.join(models)}" if models else "")
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
            fix=advice.instrument_advice(silent),
        )
    hosts = ", ".join(sorted({call.host for call in answered}))
    made = counted(len(answered), "call")
    text = f"the agent made {made} of a language model at {hosts}, and the tracer {seen.tracer} has recorded none"
    if silent:
        text, fix = f"{text}: {', '.join(silent)} is not instrumented", advice.instrument_advice(silent)
    elif not all(call.traced for call in answered):
        text += ": they were made outside of the rollout's context, in a thread that does not have it"
        fix = advice.NO_CONTEXT
    elif watch.unended:
        text += (
            f": {counted(watch.unended, 'span')} had not ended, such as that of a stream not read to its end"
        )
        fix = advice.UNFINISHED
    elif watch.imported:
        text += f", though {', '.join(watch.imported)} is instrumented"
        fix = (
            "if the program instruments it by itself, set its global tracer provider before the trainer starts; and "
            "see that the installed versions of library and instrumentation fit"
        )
    else:
        text += ": they were made without a client that can be instrumented"
        fix = advice.NO_CLIENT
    return CheckPoint(name="tracer", level=seen.unseen, text=text, fix=fix)


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
            name="token ids", level="ok", text=f"in all of {counted(every, 'call')}", details=details
        )
    else:
        yield CheckPoint(
            name="token ids",
            level="warning" if found else seen.level("token_ids"),
            text=f"missing in {missing} of {counted(every, 'call')}",
            fix=evidence.remedy("token_ids"),
            details=details,
        )
    lacking = evidence.lack("logprobs")
    if "logprobs" in seen.needs:
        yield CheckPoint(
            name="log-probabilities",
            level="ok" if lacking is None else seen.level("logprobs"),
            text=lacking or "recorded",
            fix="" if lacking is None else evidence.remedy("logprobs"),
        )


def _reward(seen: Seen) -> CheckPoint:
    evidence = seen.evidence
    lacking = evidence.lack("rewards")
    if lacking is not None:
        return CheckPoint(
            name="reward", level=seen.level("rewards"), text=lacking, fix=evidence.remedy("rewards")
        )
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
            text=f"the agent made {counted(len(answered), 'call')} of a language model, and {calls} are recorded"
            + (f"; {untraced} were made outside of the rollout's context" if untraced else ""),
            fix=f"{advice.NO_CONTEXT}; {advice.UNFINISHED}",
        )
    if watch.unended:
        return CheckPoint(
            name="spans",
            level="warning",
            text=f"{counted(watch.unended, 'span')} had not ended when the agent had, and may come too late",
            fix=advice.UNFINISHED,
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
        found += find_idle(seen.agent, seen.resources, seen.watch.sent)
    for text, fix in found:
        yield CheckPoint(name="settings", level="warning", text=text, fix=fix)
    if not found:
        yield CheckPoint(name="settings", level="ok", text="none is known to have had no effect")


def _logged(seen: Seen) -> Iterator[CheckPoint]:
    for line in seen.watch.log:
        error = line.level >= logging.ERROR
        yield CheckPoint(
            name="log",
            level="problem" if error else "warning",
            text=line.text,
            fix="see the traceback in the log: `lightning-core --debug doctor run`" if error else "",
        )

"""What must be true of a store after the fault campaign, checked on the store itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from lightning_core.store.base import LightningStore
from lightning_core.types import FINAL_ROLLOUT_STATUSES

__all__ = ["verify"]

PAGE = 500


def _acknowledged(journals: Iterable[Path]) -> dict[tuple[str, str], list[str]]:
    """Acknowledged span ids of each attempt, in the order of acknowledgement. A torn last line does not count."""
    spans: dict[tuple[str, str], list[str]] = defaultdict(list)
    for journal in journals:
        for line in journal.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                rollout_id, attempt_id, span_id = line.split()
                spans[rollout_id, attempt_id].append(span_id)
    return spans


async def verify(
    store: LightningStore,
    *,
    enqueued: dict[str, int],
    ended: dict[str, str],
    cancelled: set[str],
    begun: dict[str, str | None],
    journals: Iterable[Path],
) -> Counter[str]:
    """Count what was lost, doubled or changed.

    Args:
        store: The store, without any fault.
        enqueued: The acknowledged rollouts, and the number of the task of each.
        ended: The status in which each was first seen to have ended.
        cancelled: Those that somebody asked to cancel.
        begun: Workers that asked once each for a new attempt, and the id of that if it was acknowledged.
        journals: Files of acknowledged spans.
    """
    losses: Counter[str] = Counter(
        dict.fromkeys(
            (
                "rollouts lost",
                "rollouts doubled",
                "rollouts not final",
                "final states changed",
                "rollouts failed or cancelled by nobody",
                "acknowledged spans lost",
                "spans doubled",
                "spans out of order",
                "succeeded without all their spans",
                "attempts lost",
                "attempts begun twice",
            ),
            0,
        )
    )
    acknowledged = _acknowledged(journals)
    seen: set[str] = set()
    tasks: Counter[int] = Counter()
    attempts_of: defaultdict[str, list[str]] = defaultdict(list)
    offset = 0
    while page := await store.query_rollouts(limit=PAGE, offset=offset):
        offset += len(page)
        for rollout in page:
            name, task = rollout.rollout_id, rollout.input
            seen.add(name)
            tasks[task["number"]] += 1
            losses["rollouts not final"] += rollout.status not in FINAL_ROLLOUT_STATUSES
            losses["final states changed"] += ended.get(name, rollout.status) != rollout.status
            blameless = rollout.status == "cancelled" and name not in cancelled
            losses["rollouts failed or cancelled by nobody"] += blameless or rollout.status == "failed"
            for attempt in await store.query_attempts(name):
                if attempt.worker_id in begun:
                    attempts_of[attempt.worker_id].append(attempt.attempt_id)
                spans = await store.query_spans(name, attempt.attempt_id)
                stored = Counter(span.span_id for span in spans)
                known = acknowledged.pop((name, attempt.attempt_id), [])
                losses["acknowledged spans lost"] += sum(span_id not in stored for span_id in known)
                losses["spans doubled"] += sum(number - 1 for number in stored.values())
                order = [span.sequence_id for span in spans]
                place = {span.span_id: span.sequence_id for span in spans}
                # A batch that is sent again is acknowledged twice; what counts is when it first was.
                first = [place[span_id] for span_id in dict.fromkeys(known) if span_id in place]
                if order != sorted(set(order)) or first != sorted(first):
                    losses["spans out of order"] += 1
                    print(
                        f"{name} {attempt.attempt_id} {attempt.status}: stored {order}, acknowledged {first}"
                    )
                if attempt.status == "succeeded":
                    numbers = [span.attributes.get("number") for span in spans if "number" in span.attributes]
                    complete = numbers == list(range(task["spans"])) and len(spans) == task["spans"] + 1
                    losses["succeeded without all their spans"] += not complete
    losses["acknowledged spans lost"] += sum(len(set(spans)) for spans in acknowledged.values())
    for worker, attempt_id in begun.items():
        losses["attempts lost"] += attempt_id is not None and attempt_id not in attempts_of[worker]
        losses["attempts begun twice"] += max(len(attempts_of[worker]) - 1, 0)
    losses["rollouts lost"] = len(enqueued.keys() - seen)
    losses["rollouts doubled"] = sum(number - 1 for number in tasks.values())
    return losses

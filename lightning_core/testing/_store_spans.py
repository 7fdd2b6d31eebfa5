"""Store tests: spans are stored once, in order, under their attempt."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from lightning_core.errors import SpanConflictError, UnknownAttemptError, UnknownRolloutError
from lightning_core.store.base import LightningStore

from ._store_setup import FakeClock, full_span, make_span, take


class SpanTests:
    """Keyed and ordered span writes, and what is read back."""

    async def test_sequence_ids_are_drawn_in_the_order_given(self, store: LightningStore) -> None:
        """They count from 1 for each attempt."""
        rollout = await take(store)
        assert await store.add_spans([make_span(rollout, "a"), make_span(rollout, "b")]) == 2
        stored = await store.add_span(make_span(rollout, "c"))
        assert stored.sequence_id == 3
        found = await store.query_spans(rollout.rollout_id)
        assert [(span.span_id[-1], span.sequence_id) for span in found] == [("a", 1), ("b", 2), ("c", 3)]
        other = await take(store)
        assert (await store.add_span(make_span(other, "a"))).sequence_id == 1
        assert await store.add_spans([]) == 0

    async def test_order_is_by_sequence_id_whatever_the_clocks_say(self, store: LightningStore) -> None:
        """Trap 12: a reward whose clock is behind stays last."""
        rollout = await take(store)
        late = make_span(rollout, "a", start_time=100.0, end_time=200.0)
        early = make_span(rollout, "b", start_time=1.0, end_time=2.0)
        await store.add_spans([late, early])
        assert [span.span_id[-1] for span in await store.query_spans(rollout.rollout_id)] == ["a", "b"]

    async def test_reserved_ids_are_never_drawn_again(self, store: LightningStore) -> None:
        """Trap 13: a reservation counts when it is made, and the span takes its place when it comes."""
        rollout = await take(store)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        reserved = [await store.get_next_span_sequence_id(*key) for _ in range(2)]
        assert reserved == [1, 2]
        await store.add_span(make_span(rollout, "c"))
        await store.add_span(make_span(rollout, "b", sequence_id=2))
        await store.add_span(make_span(rollout, "a", sequence_id=1))
        await store.add_span(make_span(rollout, "f", sequence_id=10))
        await store.add_span(make_span(rollout, "d"))
        found = await store.query_spans(*key)
        assert [(span.span_id[-1], span.sequence_id) for span in found] == [
            ("a", 1),
            ("b", 2),
            ("c", 3),
            ("f", 10),
            ("d", 11),
        ]

    async def test_sequence_ids_are_unique_under_concurrency(self, store: LightningStore) -> None:
        """Trap 13: batches, single spans and reservations at once."""
        rollout = await take(store)
        key = rollout.rollout_id, rollout.attempt.attempt_id

        async def write(number: int) -> list[int]:
            if number % 3 == 0:
                return [await store.get_next_span_sequence_id(*key)]
            if number % 3 == 1:
                return [(await store.add_span(make_span(rollout, f"{number:x}"))).sequence_id]
            await store.add_spans([make_span(rollout, f"{number:x}{part}") for part in range(3)])
            return []

        reserved = await asyncio.gather(*(write(number) for number in range(30)))
        stored = [span.sequence_id for span in await store.query_spans(*key)]
        assert len(stored) == 10 + 30
        assert stored == sorted(set(stored))
        drawn = [number for numbers in reserved[::3] for number in numbers]
        assert not set(drawn) & set(stored)

    async def test_the_same_span_again_changes_nothing(self, store: LightningStore) -> None:
        """Trap 6: a batch whose reply was lost is sent again, alone and along with new spans."""
        rollout = await take(store)
        batch = [make_span(rollout, "a"), make_span(rollout, "b")]
        assert await store.add_spans(batch) == 2
        assert await store.add_spans(batch) == 0
        assert await store.add_spans([*batch, make_span(rollout, "c")]) == 1
        assert (await store.add_span(make_span(rollout, "b", name="other"))).name == "call"
        found = await store.query_spans(rollout.rollout_id)
        assert [span.span_id[-1] for span in found] == ["a", "b", "c"]
        assert [span.sequence_id for span in found][:2] == [1, 2]
        assert (await store.statistics()).spans == 3

    async def test_the_same_span_twice_in_a_batch_is_stored_once(self, store: LightningStore) -> None:
        """Trap 6."""
        rollout = await take(store)
        span = make_span(rollout, "a")
        assert await store.add_spans([span, make_span(rollout, "b"), span]) == 2
        assert [s.sequence_id for s in await store.query_spans(rollout.rollout_id)] == [1, 2]

    async def test_one_span_id_in_two_attempts_is_two_spans(self, store: LightningStore) -> None:
        """The key is rollout, attempt and span id."""
        first = await take(store)
        second = await store.start_attempt(first.rollout_id)
        assert await store.add_spans([make_span(first, "a"), make_span(second, "a")]) == 2
        found = await store.query_spans(first.rollout_id)
        assert [span.attempt_id for span in found] == [first.attempt.attempt_id, second.attempt.attempt_id]

    async def test_two_spans_cannot_have_one_sequence_id(self, store: LightningStore) -> None:
        """The whole batch is refused; the holder itself may come again."""
        rollout = await take(store)
        await store.add_span(make_span(rollout, "a", sequence_id=5))
        for batch in (
            [make_span(rollout, "b", sequence_id=5)],
            [make_span(rollout, "b"), make_span(rollout, "c", sequence_id=5)],
            [make_span(rollout, "b", sequence_id=8), make_span(rollout, "c", sequence_id=8)],
            [make_span(rollout, "b"), make_span(rollout, "c", sequence_id=6)],
        ):
            with pytest.raises(SpanConflictError):
                await store.add_spans(batch)
            assert [span.sequence_id for span in await store.query_spans(rollout.rollout_id)] == [5]
        assert await store.add_spans([make_span(rollout, "a", sequence_id=5)]) == 0

    async def test_a_batch_with_an_unknown_attempt_is_refused_whole(self, store: LightningStore) -> None:
        """All or none, and the error says which."""
        rollout = await take(store)
        lost = make_span(rollout, "b").detached(attempt_id="at-none")
        with pytest.raises(UnknownAttemptError, match="at-none"):
            await store.add_spans([make_span(rollout, "a"), lost])
        with pytest.raises(UnknownRolloutError, match="ro-none"):
            await store.add_spans([make_span(rollout, "a"), lost.detached(rollout_id="ro-none")])
        assert await store.query_spans(rollout.rollout_id) == []

    async def test_latest_means_the_latest_attempt_even_without_spans(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 17: the older attempt's spans are not shown instead."""
        first = await take(store, max_attempts=2)
        await store.add_span(make_span(first, "a"))
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        assert len(await store.query_spans(first.rollout_id, "latest")) == 1
        second = await store.dequeue_rollout()
        assert second is not None
        assert await store.query_spans(first.rollout_id, "latest") == []
        await store.add_span(make_span(second, "b"))
        [span] = await store.query_spans(first.rollout_id, "latest")
        assert span.attempt_id == second.attempt.attempt_id
        assert len(await store.query_spans(first.rollout_id, first.attempt.attempt_id)) == 1
        assert len(await store.query_spans(first.rollout_id)) == 2

    async def test_spans_are_filtered_and_paged(self, store: LightningStore) -> None:
        """Filters combine; limit and offset apply to what passes them."""
        rollout = await take(store)
        spans = [
            make_span(
                rollout, f"{n:x}", name="even" if n % 2 == 0 else "odd", trace_id=("a" if n < 4 else "b") * 32
            )
            for n in range(8)
        ]
        await store.add_spans(spans)

        async def ids(**filters: object) -> list[str]:
            found = await store.query_spans(rollout.rollout_id, **filters)  # pyright: ignore[reportArgumentType] - any filter
            return [span.span_id[-1] for span in found]

        assert await ids(name="even") == ["0", "2", "4", "6"]
        assert await ids(name="even", limit=2, offset=1) == ["2", "4"]
        assert await ids(trace_id="b" * 32, name="odd") == ["5", "7"]
        assert await ids(span_id="3".rjust(16, "0")) == ["3"]
        assert await ids(span_id="3".rjust(16, "0"), name="even") == []
        assert await ids(limit=0) == []
        assert await ids(offset=6) == ["6", "7"]
        assert await ids(name="none") == []

    async def test_every_part_of_a_span_is_kept(self, store: LightningStore) -> None:
        """What comes back equals what was written, extra fields included."""
        rollout = await take(store)
        span = full_span(rollout)
        stored = await store.add_span(span)
        [found] = await store.query_spans(rollout.rollout_id)
        assert stored == span
        assert found == span
        assert found.model_dump() == span.model_dump()

    async def test_spans_of_the_sdk_are_stored(self, store: LightningStore) -> None:
        """``add_otel_span`` converts, draws a sequence id or takes the given one, and is keyed too."""
        rollout = await take(store)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        with TracerProvider().get_tracer("t").start_as_current_span("work", attributes={"n": 1}) as live:
            live.add_event("event")
        assert isinstance(live, ReadableSpan)
        stored = await store.add_otel_span(*key, live)
        context = live.get_span_context()
        assert context is not None
        assert (stored.name, stored.sequence_id, stored.attributes) == ("work", 1, {"n": 1})
        assert stored.span_id == trace_api.format_span_id(context.span_id)
        assert await store.add_otel_span(*key, live, 9) == stored
        with TracerProvider().get_tracer("t").start_as_current_span("more") as another:
            pass
        assert isinstance(another, ReadableSpan)
        assert (await store.add_otel_span(*key, another, 9)).sequence_id == 9
        assert [span.name for span in await store.query_spans(*key)] == ["work", "more"]

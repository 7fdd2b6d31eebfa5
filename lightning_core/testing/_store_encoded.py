"""Store tests: spans that come and go encoded are the same spans."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lightning_core.errors import SpanConflictError, UnknownAttemptError, UnknownRolloutError
from lightning_core.store.base import LightningStore
from lightning_core.store.encoding import EncodedSpan, decode_span, encode_span
from lightning_core.types import Span

from ._store_setup import FakeClock, full_span, make_span, status_of, take


class EncodedSpanTests:
    """``add_encoded_spans`` and ``query_encoded_spans`` keep every promise of ``add_spans`` and ``query_spans``."""

    async def test_an_encoded_span_is_read_as_it_was(self, store: LightningStore) -> None:
        """Every part, extra fields included, whichever way it was written and is read."""
        first, second = await take(store), await take(store)
        written = full_span(first)
        assert await store.add_encoded_spans([encode_span(written)]) == 1
        [found] = await store.query_spans(first.rollout_id)
        assert found == written
        assert found.model_dump() == written.model_dump()
        assert (found.__pydantic_extra__, len(found.events), len(found.links)) == (
            {"extra_field": {"nested": [1, None]}},
            2,
            2,
        )
        [encoded] = await store.query_encoded_spans(first.rollout_id)
        assert decode_span(encoded) == written
        plain = full_span(second)
        await store.add_span(plain)
        [encoded] = await store.query_encoded_spans(second.rollout_id)
        assert (encoded.rollout_id, encoded.attempt_id) == (second.rollout_id, second.attempt.attempt_id)
        assert (encoded.sequence_id, encoded.span_id, encoded.trace_id, encoded.name) == (
            plain.sequence_id,
            plain.span_id,
            plain.trace_id,
            plain.name,
        )
        assert decode_span(encoded) == plain
        # And on from there, as a copy between stores does.
        third = await take(store)
        moved = encoded._replace(rollout_id=third.rollout_id, attempt_id=third.attempt.attempt_id)
        assert await store.add_encoded_spans([moved]) == 1
        [found] = await store.query_spans(third.rollout_id)
        assert found == full_span(third)

    async def test_numbers_keep_their_kind(self, store: LightningStore) -> None:
        """Trap 18: 1, 1.0 and true are three things, and what is not a number is not one later either."""
        rollout = await take(store)
        values = {"int": 1, "float": 1.0, "bool": True, "nan": math.nan, "inf": math.inf}
        await store.add_spans([make_span(rollout, "a", attributes=dict(values))])
        await store.add_encoded_spans([encode_span(make_span(rollout, "b", attributes=dict(values)))])
        for span in await store.query_spans(rollout.rollout_id):
            kinds = {key: type(value) for key, value in span.attributes.items()}
            assert kinds == {key: type(value) for key, value in values.items()}
            assert str(span.attributes["nan"]) == "nan"
            assert span.attributes["inf"] == math.inf

    async def test_the_body_is_a_json_object(self, store: LightningStore) -> None:
        """So that it can go over a network as it is."""
        rollout = await take(store)
        await store.add_spans([make_span(rollout, "a", attributes={"key": "value"})])
        [encoded] = await store.query_encoded_spans(rollout.rollout_id)
        assert json.loads(encoded.body)["attributes"] == {"key": "value"}

    async def test_encoded_and_plain_spans_are_ordered_together(self, store: LightningStore) -> None:
        """Sequence ids are drawn in the order of writing, whichever way it is."""
        rollout = await take(store)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        await store.add_spans([make_span(rollout, "a")])
        assert await store.add_encoded_spans(_encoded(rollout, "b", "c")) == 2
        assert await store.get_next_span_sequence_id(*key) == 4
        await store.add_encoded_spans([encode_span(make_span(rollout, "e", sequence_id=9))])
        await store.add_encoded_spans([encode_span(make_span(rollout, "d", sequence_id=4))])
        await store.add_span(make_span(rollout, "f"))
        assert await store.add_encoded_spans(_encoded(rollout, "0")) == 1
        expected = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 9), ("f", 10), ("0", 11)]
        for spans in (await store.query_spans(*key), await store.query_encoded_spans(*key)):
            assert [(span.span_id[-1], span.sequence_id) for span in spans] == expected
        for span in await store.query_encoded_spans(*key):
            assert decode_span(span).sequence_id == span.sequence_id

    async def test_the_same_span_again_changes_nothing_encoded_or_not(self, store: LightningStore) -> None:
        """Trap 6: the key is the same."""
        rollout = await take(store)
        assert await store.add_spans([make_span(rollout, "a")]) == 1
        assert await store.add_encoded_spans(_encoded(rollout, "a", "b", "b", "a")) == 1
        assert await store.add_encoded_spans(_encoded(rollout, "a", "b")) == 0
        assert await store.add_spans([make_span(rollout, "b", name="other"), make_span(rollout, "c")]) == 1
        found = await store.query_spans(rollout.rollout_id)
        assert [(span.span_id[-1], span.name) for span in found] == [
            ("a", "call"),
            ("b", "call"),
            ("c", "call"),
        ]
        assert (await store.statistics()).spans == 3
        assert await store.add_encoded_spans([]) == 0

    async def test_encoded_spans_are_stored_all_or_none(self, store: LightningStore) -> None:
        """A conflict, or something unknown, refuses the whole batch."""
        rollout = await take(store)
        await store.add_span(make_span(rollout, "a", sequence_id=5))
        conflicting = encode_span(make_span(rollout, "c", sequence_id=5))
        with pytest.raises(SpanConflictError):
            await store.add_encoded_spans([*_encoded(rollout, "b"), conflicting])
        lost = conflicting._replace(sequence_id=0, attempt_id="at-none")
        with pytest.raises(UnknownAttemptError, match="at-none"):
            await store.add_encoded_spans([*_encoded(rollout, "b"), lost])
        with pytest.raises(UnknownRolloutError, match="ro-none"):
            await store.add_encoded_spans([*_encoded(rollout, "b"), lost._replace(rollout_id="ro-none")])
        assert [span.span_id[-1] for span in await store.query_spans(rollout.rollout_id)] == ["a"]
        assert await store.add_encoded_spans([encode_span(make_span(rollout, "a", sequence_id=5))]) == 0

    async def test_encoded_spans_are_signs_of_life(self, store: LightningStore, clock: FakeClock) -> None:
        """Of each attempt in the batch; one that is superseded stays so."""
        first = await take(store, unresponsive_seconds=10, max_attempts=2)
        second = await take(store, unresponsive_seconds=10)
        clock.advance(6)
        assert await store.add_encoded_spans(_encoded(first, "a") + _encoded(second, "a")) == 2
        clock.advance(6)
        for rollout in (first, second):
            assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        clock.advance(6)
        assert await status_of(store, first.rollout_id) == ("requeuing", ["unresponsive"])
        await store.add_encoded_spans(_encoded(first, "b"))
        assert await status_of(store, first.rollout_id) == ("running", ["running"])
        await store.start_attempt(first.rollout_id)
        await store.add_encoded_spans(_encoded(first, "c"))
        assert await status_of(store, first.rollout_id) == ("preparing", ["cancelled", "preparing"])
        assert len(await store.query_encoded_spans(first.rollout_id, first.attempt.attempt_id)) == 3

    async def test_encoded_spans_are_filtered_as_others_are(self, store: LightningStore) -> None:
        """Trap 27: every filter of ``query_spans`` works here too, and finds the same."""
        first = await take(store, max_attempts=2)
        spans = [
            make_span(
                first, f"{n:x}", name="even" if n % 2 == 0 else "odd", trace_id=("a" if n < 4 else "b") * 32
            )
            for n in range(8)
        ]
        await store.add_encoded_spans([encode_span(span) for span in spans])
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        second = await store.dequeue_rollout()
        assert second is not None
        rollout_id = first.rollout_id
        assert await store.query_encoded_spans(rollout_id, "latest") == []
        await store.add_encoded_spans(_encoded(second, "0"))
        filters: list[tuple[dict[str, Any], int]] = [
            ({}, 9),
            ({"attempt_id": "latest"}, 1),
            ({"attempt_id": first.attempt.attempt_id}, 8),
            ({"attempt_id": "at-none"}, 0),
            ({"name": "even"}, 4),
            ({"name": "even", "limit": 2, "offset": 1}, 2),
            ({"trace_id": "b" * 32, "name": "odd"}, 2),
            ({"span_id": "0" * 16}, 2),
            ({"span_id": "0" * 16, "attempt_id": first.attempt.attempt_id}, 1),
            ({"limit": 0}, 0),
            ({"offset": 6}, 3),
        ]
        for filter_by, number in filters:
            plain: list[Span] = await store.query_spans(rollout_id, **filter_by)
            encoded = await store.query_encoded_spans(rollout_id, **filter_by)
            assert len(encoded) == number, filter_by
            assert [decode_span(span) for span in encoded] == plain
        assert await store.query_encoded_spans("ro-none") == []


def _encoded(rollout: Any, *span_ids: str) -> list[EncodedSpan]:
    return [encode_span(make_span(rollout, span_id)) for span_id in span_ids]

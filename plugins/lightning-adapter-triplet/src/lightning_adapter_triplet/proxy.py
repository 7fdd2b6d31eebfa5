"""``LlmProxyTripletAdapter``: the calls that a gateway recorded as (prompt, response, reward) triplets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_core.types import LLMCall, SpanLike, is_llm_call
from lightning_core.types.llm.messages import has_indexed

from .adapter import TraceTripletAdapter
from .calls import CallFinder, TraceCalls, failure
from .duplicates import RecordedCall
from .policy import RewardMatchPolicy
from .tree import TraceNode, TraceTree

__all__ = ["LlmProxyTripletAdapter"]

_FACTS = ("lightning.llm_proxy.",)
_NO_IDS = "it has no token ids: "


class LlmProxyTripletAdapter(TraceTripletAdapter):
    """Makes one triplet of every LLM call that went through a gateway, from the gateway's spans alone.

    A gateway such as that of ``lightning-llm-proxy`` sees what the engine was sent and what it gave back, token ids and
    log-probabilities included, whatever program made the call. What a tracer recorded of the same calls is passed over.
    Calls and rewards are in the order of their ``sequence_id``, and neither times nor parents are used to place them.
    The triplets are those of :class:`TraceTripletAdapter`.

    Args:
        llm_call_match: Regular expression; of the gateway's calls only those whose span has a name that it matches
            somewhere are taken.
        reward_match: How rewards are matched with calls; see :class:`TraceTripletAdapter`.
        require_token_ids: Leave out the calls of which the engine gave no token ids, with a warning. Otherwise their
            triplets hold ``None`` for them. Either way :meth:`explain` names them.

    Raises:
        ConfigurationError: If a setting is wrong. This is a ``ValueError``.
    """

    def __init__(
        self,
        llm_call_match: str | None = None,
        reward_match: Any = RewardMatchPolicy.FIRST_OCCURRENCE,
        require_token_ids: bool = True,
    ) -> None:
        self.require_token_ids = require_token_ids
        super().__init__(llm_call_match=llm_call_match, repair_hierarchy=False, reward_match=reward_match)

    def make_finder(self) -> CallFinder:
        """Return what finds the calls of a gateway."""
        return _GatewayCalls(self.llm_call_match, self.require_token_ids)


class _GatewayCalls(CallFinder):
    """Finds the calls that a gateway recorded."""

    def __init__(self, llm_call_match: str | None, require_token_ids: bool) -> None:
        super().__init__(llm_call_match=llm_call_match, repair_hierarchy=False)
        self._require_token_ids = require_token_ids

    def tree(self, source: Sequence[SpanLike]) -> TraceTree:
        pattern = self._call

        def is_call(name: str, attributes: Mapping[str, Any]) -> bool:
            return _is_recorded(attributes) and (pattern is None or pattern.search(name) is not None)

        return TraceTree.from_spans(source, repair=False, is_call=is_call)

    def find(self, source: Sequence[SpanLike]) -> TraceCalls:
        trace = super().find(source)
        reasons = Counter(reason for reason in trace.excluded.values() if reason.startswith(_NO_IDS))
        if reasons and trace.calls:
            count = reasons.total()
            trace.warning = (
                f"{count} of {count + len(trace.calls)} calls are left out, since they have no token ids: "
                f"{reasons.most_common(1)[0][0].removeprefix(_NO_IDS)}. require_token_ids=False keeps them"
            )
        return trace

    def unusable(self, node: TraceNode, call: LLMCall) -> str | None:
        if node.attributes.get(f"{_FACTS[0]}client_disconnected"):
            return "the client went away before the answer had ended"
        # What there is of an answer that broke off is not what the model would have said.
        reason = failure(node) or super().unusable(node, call)
        if reason is not None or not self._require_token_ids:
            return reason
        response = call.response
        missing = [
            found.missing or "not looked for"
            for found in (call.prompt_token_ids, response.token_ids if response is not None else None)
            if found is not None and found.ids is None
        ]
        return f"{_NO_IDS}{', '.join(missing)}" if missing else None

    def merged(self, found: list[tuple[TraceNode, LLMCall]]) -> list[RecordedCall]:
        # A gateway writes one span a call: the same question asked twice is two calls.
        return [RecordedCall(node, call, [node]) for node, call in found]

    def without_calls(self, tree: TraceTree) -> str:
        recorded = sum(_is_recorded(node.attributes) for node in tree.nodes)
        if self._call is not None and recorded:
            return f"llm_call_match {self._call.pattern!r} matches none of the {recorded} calls of a gateway"
        traced = sum(is_llm_call(node.attributes) for node in tree.nodes)
        if traced:
            return (
                f"no span is of a gateway, but {traced} are LLM calls that a tracer recorded: "
                'send the agent\'s calls through a gateway, or choose adapter="triplet", which reads those'
            )
        return (
            f"none of the {len(tree)} spans is of a gateway: choose one, "
            'Trainer(llm_proxy="gateway", ...), and have the agent call the model at the endpoint of its LLM resource'
        )


def _is_recorded(attributes: Mapping[str, Any]) -> bool:
    """Say whether a gateway wrote a span, of a call of a language model."""
    return has_indexed(attributes, _FACTS) and is_llm_call(attributes)

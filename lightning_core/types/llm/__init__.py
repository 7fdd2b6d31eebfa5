"""``LLMCall``: what a span tells about a call of a language model, whichever convention it was written in."""

from .call import LLMCall as LLMCall
from .call import LLMChoice as LLMChoice
from .call import is_llm_call as is_llm_call
from .messages import Message as Message
from .token_ids import TokenIds as TokenIds

__all__ = ["LLMCall", "LLMChoice", "Message", "TokenIds", "is_llm_call"]

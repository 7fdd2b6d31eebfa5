"""Data that the parts exchange: rollouts and attempts, resources, spans, and the view on calls of language models."""

from .core import *  # noqa: F403
from .llm import *  # noqa: F403
from .resources import *  # noqa: F403
from .tracing import *  # noqa: F403

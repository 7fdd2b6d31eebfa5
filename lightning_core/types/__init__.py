"""Data that the parts exchange: rollouts and attempts, resources, spans."""

from .core import *  # noqa: F403
from .resources import *  # noqa: F403
from .tracing import *  # noqa: F403

"""Every error that lightning-core raises, in one tree.

Each also inherits the standard class that a caller would expect, so ``except LookupError`` and
``except LightningError`` both work::

    LightningError
    ├── PluginError
    │   ├── UnknownPluginError            (LookupError)   no component of that name
    │   ├── DisabledPluginError           (LookupError)   switched off by LIGHTNING_CORE_DISABLE_PLUGINS
    │   ├── PluginConflictError           (LookupError)   two distributions claim one name
    │   ├── BrokenPluginError             (ImportError)   its module or its factory cannot be imported
    │   ├── IncompatiblePluginError       (ImportError)   written for another core or API version
    │   ├── PluginSettingsError           (ValueError)    a setting is missing, unknown or wrong
    │   ├── InvalidSpecError              (TypeError)     the value given for a component has no known form
    │   └── InvalidHookError              (TypeError)     a lifecycle hook has a wrong signature
    ├── StoreError
    │   ├── UnknownRolloutError           (LookupError)
    │   ├── UnknownAttemptError           (LookupError)
    │   ├── FinalRolloutError             (ValueError)    a change to a rollout that has ended
    │   ├── InvalidTransitionError        (ValueError)    a status that the rollout cannot take
    │   ├── SpanConflictError             (ValueError)    a sequence id that another span holds
    │   ├── UnserializableValueError      (TypeError)     a value that this store cannot keep
    │   ├── StoreClosedError              (RuntimeError)
    │   ├── StoreSchemaError              (RuntimeError)  a file of a newer version
    │   └── StoreUnavailableError         (OSError)       path not writable, file corrupt, server gone
    ├── AgentError
    │   ├── InvalidOutcomeError           (TypeError, ValueError)  the agent returned what is no result
    │   ├── NoResourcesError              (LookupError)   the store holds no resources for the rollout
    │   ├── CommandError                  (RuntimeError)  a program that is the agent did not start, or failed
    │   └── RolloutTimeoutError           (TimeoutError)
    ├── VetoRollout                                       raised by a hook to stop a rollout
    ├── ConfigurationError                (ValueError)    arguments that do not fit together
    ├── DatasetError                      (ValueError)
    ├── ResourceError                     (ValueError)    a resource that cannot be read or rendered
    ├── CaptureError                      (RuntimeError)  traces lack what the algorithm needs
    ├── TraceError                        (RuntimeError)  spans could not be captured or stored
    ├── EngineError                       (RuntimeError)  a model server that does not start or answer
    ├── ExecutionError                    (RuntimeError)  an algorithm or a runner ended abnormally
    └── ResumeError                       (RuntimeError)  a run that cannot be resumed, or not by this process
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "BrokenPluginError",
    "CaptureError",
    "CommandError",
    "ConfigurationError",
    "DatasetError",
    "DisabledPluginError",
    "EngineError",
    "ExecutionError",
    "FinalRolloutError",
    "IncompatiblePluginError",
    "InvalidHookError",
    "InvalidOutcomeError",
    "InvalidSpecError",
    "InvalidTransitionError",
    "LightningError",
    "NoResourcesError",
    "PluginConflictError",
    "PluginError",
    "PluginSettingsError",
    "ResourceError",
    "ResumeError",
    "RolloutTimeoutError",
    "SpanConflictError",
    "StoreClosedError",
    "StoreError",
    "StoreSchemaError",
    "StoreUnavailableError",
    "TraceError",
    "UnknownAttemptError",
    "UnknownPluginError",
    "UnknownRolloutError",
    "UnserializableValueError",
    "VetoRollout",
]


class LightningError(Exception):
    """Base of every error that this project raises on purpose."""

    def __str__(self) -> str:
        # LookupError's own rendering (KeyError) would quote the message.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class PluginError(LightningError):
    """A plugin cannot be found, loaded or set up."""


class UnknownPluginError(PluginError, LookupError):
    """No installed distribution provides a component of that kind and name."""


class DisabledPluginError(PluginError, LookupError):
    """The component is installed, and switched off by ``LIGHTNING_CORE_DISABLE_PLUGINS``."""


class PluginConflictError(PluginError, LookupError):
    """Two distributions provide the same kind and name, or one claims a built-in name."""


class BrokenPluginError(PluginError, ImportError):
    """The plugin's module, hook or factory failed while it was loaded."""


class IncompatiblePluginError(PluginError, ImportError):
    """The plugin asks for another version of lightning-core or of its plugin API."""


class PluginSettingsError(PluginError, ValueError):
    """Settings for a component do not pass its configuration model."""


class InvalidSpecError(PluginError, TypeError):
    """A component was described in a form that ``resolve`` does not know."""


class InvalidHookError(PluginError, TypeError):
    """A lifecycle hook is not async, or takes parameters that the lifecycle does not pass."""


class StoreError(LightningError):
    """A store operation failed."""


class UnknownRolloutError(StoreError, LookupError):
    """No rollout of that id is in the store."""


class UnknownAttemptError(StoreError, LookupError):
    """The rollout has no attempt of that id."""


class FinalRolloutError(StoreError, ValueError):
    """The rollout has ended; only its metadata may still change."""


class InvalidTransitionError(StoreError, ValueError):
    """The rollout or attempt cannot take that status from where it is."""


class SpanConflictError(StoreError, ValueError):
    """Two different spans of one attempt claim the same sequence id."""


class UnserializableValueError(StoreError, TypeError):
    """A task input, metadata or attribute holds a value that the store cannot keep."""


class StoreClosedError(StoreError, RuntimeError):
    """The store was closed and takes no more calls."""


class StoreSchemaError(StoreError, RuntimeError):
    """The stored data were written by a newer version of the store."""


class StoreUnavailableError(StoreError, OSError):
    """The store's medium cannot be reached, read or written."""


class AgentError(LightningError):
    """A rollout could not run or gave no usable result."""


class InvalidOutcomeError(AgentError, TypeError, ValueError):
    """The agent returned a value that is no rollout result, such as a string or NaN."""


class NoResourcesError(AgentError, LookupError):
    """The store holds no resources that the rollout could use."""


class CommandError(AgentError, RuntimeError):
    """The program of a ``CommandAgent`` could not be started, or ended with an exit code other than 0."""


class RolloutTimeoutError(AgentError, TimeoutError):
    """The attempt ran longer than ``RolloutConfig.timeout_seconds``, or than its agent allows."""


class VetoRollout(LightningError):
    """Raised by a hook in ``on_rollout_start``: the rollout ends ``cancelled`` with this reason."""


class ConfigurationError(LightningError, ValueError):
    """Arguments that do not fit together, or a keyword that does not exist."""


class DatasetError(LightningError, ValueError):
    """A dataset is empty, or has no length or no item access."""


class ResourceError(LightningError, ValueError):
    """A resource is of an unknown kind, or a template cannot be rendered."""


class CaptureError(LightningError, RuntimeError):
    """The first rollouts of a run succeeded, and their traces lack what the algorithm needs."""


class TraceError(LightningError, RuntimeError):
    """Spans of a trace could not be captured or stored."""


class EngineError(LightningError, RuntimeError):
    """A model engine does not start, or does not answer."""


class ExecutionError(LightningError, RuntimeError):
    """The algorithm or a runner ended abnormally."""


class ResumeError(LightningError, RuntimeError):
    """There is no run to resume, it cannot be resumed, or another process has it."""

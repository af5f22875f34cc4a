"""Every error that the engine raises.

A failure of one sample is data (`engine.types.Failure`); only a failure of the system raises::

    PldError                  anything the engine raises on purpose; its text is one clear line
    ├── ConfigError           the configuration cannot be used (command line: exit code 2)
    ├── DataError             an input file cannot be used
    ├── RunError              a run directory cannot be used
    │   ├── RunLockedError    another process is working in it
    │   └── CorruptStoreError a file of ours is damaged; says which and what to do
    ├── ModelError            a model cannot be reached or used at all
    │   └── UnknownModelError no adapter knows this model address
    ├── BudgetError           going on would pass the cap on cost
    ├── InterruptedRunError   the user stopped the run; everything finished is saved
    └── AwaitingAnswers       a batch model has been handed its requests (exit code 75)
"""

from __future__ import annotations


class PldError(Exception):
    """Base of every error raised on purpose. `str()` is one line a user can act on."""

    exit_code = 1


class ConfigError(PldError):
    """The configuration cannot be used: says the file, the key and the nearest known key."""

    exit_code = 2


class DataError(PldError):
    """An input file cannot be used: says the file, the row and the field."""


class RunError(PldError):
    """A run directory cannot be used: says which and why."""


class RunLockedError(RunError):
    """Another process is working in this run directory."""


class CorruptStoreError(RunError):
    """A file written by this project is damaged beyond what resuming repairs."""


class ModelError(PldError):
    """A model cannot be used at all (as against one failed request)."""


class UnknownModelError(ModelError, ConfigError):
    """No adapter knows this model address; the message lists the known ones."""

    exit_code = 2


class BudgetError(PldError):
    """The next request could pass the cap on cost; nothing more was sent."""


class InterruptedRunError(PldError):
    """The user stopped the run. What was answered is saved; the same command goes on."""

    exit_code = 130


class AwaitingAnswers(PldError):  # noqa: N818 - a state to come back to, not a fault
    """A batch model holds the pending requests; run the same command again to go on."""

    exit_code = 75

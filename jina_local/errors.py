"""The exceptions of jina_local: every one says what was given, what is possible and what to do.

JinaError
├── UsageError (also ValueError)   what the caller asked for cannot be done as asked
│   └── TextError                  one text of the call is at fault; `.index` says which
│       └── TextTooLong            it has more tokens than are allowed
├── ModelError                     the files of a model
│   ├── ModelNotFound              not on this machine, and not to be fetched
│   └── ModelDamaged               there, but not what they have to be
├── SearchIndexError               an index of folders
│   ├── IndexNotFound              not on this machine
│   ├── IndexDamaged               there, but not what it has to be
│   └── IndexMismatch              made with another model, or by another version
├── EngineError                    an engine is missing, or broke at its work
│   ├── EngineMissing              not installed
│   └── EngineCrashed              its own process died, hung or wrote nonsense; `.cause` says which
├── Overloaded                     more work is under way than may be; `.retry_after` says when to come back
├── CallEnded                      nobody waits for the answer any more, or its time is over
├── ServerUnavailable              no server answers at its address, or it went away
├── NonFiniteError                 the model gave NaN or infinity; `.indices` says for which texts
├── OutputError                    a result cannot be written
└── Locked                         another process holds what this one needs
"""

from __future__ import annotations

from collections.abc import Sequence


class JinaError(Exception):
    """Catches everything that this package raises on purpose."""


class UsageError(JinaError, ValueError):
    """An argument, a task, a dimension or an option that cannot be honoured."""


class TextError(UsageError):
    """One text of a call cannot be embedded. `index` is its place in the call."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index}: {reason}")
        self.index = index
        self.reason = reason


class TextTooLong(TextError):
    """One text of a call has more tokens than it may have, and is not to be cut."""


class ModelError(JinaError):
    """Something is wrong with the files of a model."""


class ModelNotFound(ModelError):
    """The files are not on this machine and were not, or may not be, fetched."""


class ModelDamaged(ModelError):
    """A file is truncated, malformed, of another model, or does not fit its config."""


class SearchIndexError(JinaError):
    """Something is wrong with an index of folders."""


class IndexNotFound(SearchIndexError):
    """There is no index of that name, or at that path."""


class IndexDamaged(SearchIndexError):
    """The file is truncated, overwritten, or not an index."""


class IndexMismatch(SearchIndexError):
    """Made with another model, other settings, or by another version; the message has the difference."""


class EngineError(JinaError):
    """The native engine refused or failed."""


class EngineMissing(EngineError):
    """The engine is not installed; the message has the command that installs it."""


class EngineCrashed(EngineError):
    """The engine's own process did not survive its work; the caller's process is unharmed.

    `cause` names the signal and the failed assertion, as far as they are known; `words` are the last lines that the
    process wrote to its standard error. `by_text`: the texts of this pass end the process, and others can be run.
    """

    def __init__(self, message: str, cause: str = "", words: str = "", *, by_text: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.words = words
        self.by_text = by_text


class Overloaded(JinaError):
    """More work is under way than may be. `retry_after`: seconds until it is done, at the pace of late."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CallEnded(JinaError):
    """A call's time is over, or its caller has gone; its texts were not run."""


class ServerUnavailable(JinaError):
    """No server answers at the address that was given, or it went away before it had answered."""


class NonFiniteError(JinaError):
    """The model returned NaN, infinity or a zero vector. `indices` are the texts' places in the call."""

    def __init__(
        self,
        indices: Sequence[int],
        total: int,
        *,
        what: str = "vector",
        of: str = "texts",
        company: str = "also when run alone. The other texts are not affected.",
    ) -> None:
        shown = ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")
        super().__init__(
            f"no usable {what} for {len(indices)} of {total} {of} (index {shown}): the model returned NaN, "
            f"infinity or zero for them, {company} "
            "If this happens on ordinary text, check the files with `python -m jina_local models verify`."
        )
        self.indices = tuple(indices)


class OutputError(JinaError):
    """A file or folder cannot be written, or exists already."""


class Locked(JinaError):
    """Another process is writing the same place."""

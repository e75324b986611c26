"""A Backend whose engine runs in a process of its own: a native abort ends that process, never the caller's.

The same pass gives the same bits as in the caller's process. A pass during which the process dies is run once more in
a new one, with no other beside it. If that one dies too, its texts are run one by one. A text that ends the process
again is quarantined if one token alone can be run: it is not run any more, and the others get their rows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineCrashed, EngineError
from ..spec import TokenBatch
from .checks import check
from .jobs import ADVICE, Died, Limits, Opening
from .process import WORKER, Death
from .supervisor import Supervisor

_log = logging.getLogger("jina_local")
REASON = "the engine runs in a process of its own"
_ONE = np.zeros(1, np.int32)
_PROBE = TokenBatch(_ONE, np.array([0, 1], np.int32), _ONE, _ONE)  # every model has a first token


class RemoteBackend:
    """See backends.Backend. Jobs beyond the engine's lanes wait here, so that only jobs under way can be at fault."""

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        task: str | None = None,
        adapters: Mapping[str, Path] | None = None,
        device: str | None = None,
        threads: int | None = None,
        limits: Limits | None = None,
        worker: str = WORKER,
    ) -> None:
        """The words of open_backend. `worker`: the module whose process it is.

        Raises what the engine raises, and EngineCrashed if its process dies.
        """
        absolute = {task: Path(os.path.abspath(file)) for task, file in (adapters or {}).items()}
        opening = Opening(name, Path(os.path.abspath(path)), task, absolute, device, threads)
        self._owner = os.getpid()
        self._quarantine: dict[bytes, Death] = {}
        self._supervisor = Supervisor(opening, limits or Limits(), worker)
        self._finalizer = weakref.finalize(self, _close, self._supervisor, self._owner)
        try:
            facts = self._supervisor.open()
        except BaseException:
            self.close()
            raise
        self.hidden, self.vocab = facts.hidden, facts.vocab
        self.budget, self.lanes = facts.budget, facts.lanes
        self.device, self.dtype, self.threads = facts.device, facts.dtype, facts.threads
        self.reasons: tuple[str, ...] = (*facts.reasons, REASON)

    @property
    def pid(self) -> int | None:
        """The number of the engine's process; None if it has died and no other was needed yet."""
        return self._supervisor.pid

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The rows of texts that end the process are NaN, and a warning is logged.

        Raises EngineCrashed if no text of the pass can be run (`by_text`), or none of the model any more.
        """
        if os.getpid() != self._owner:
            raise EngineError(
                "this model was opened before the process was forked, and its engine's process answers the parent "
                "alone. Open it in the new process, or start that with multiprocessing's 'spawn'."
            )
        if self._quarantine and (known := self._known(batch, task)):
            return self._without(known, batch, sharers, task)
        try:
            return self._supervisor.run(batch, sharers, task)
        except Died as died:
            _log.warning("the engine's process died (%s); the pass is run again in a new one", died.death.cause)
        try:
            return self._supervisor.run(batch, sharers, task, alone=True)
        except Died as died:
            death = died.death
        if len(batch.starts) == 2:
            self._set_aside(batch, task, death)
            raise _of_texts(1, death)
        return self._one_by_one(batch, sharers, task)

    def close(self) -> None:
        """End the engine's process after the calls that are under way. A fork of the caller's ends nothing."""
        self._finalizer()

    def _one_by_one(self, batch: TokenBatch, sharers: int, task: str | None) -> NDArray[np.float32]:
        """The rows of a pass that has ended the process twice: those of its culprits are NaN."""
        rows = np.full((len(batch.rows), self.hidden), np.nan, np.float32)
        deaths = []
        texts = len(batch.starts) - 1
        for text in range(texts):
            only = _part(batch, [text])
            try:
                rows[batch.owner == text] = self._supervisor.run(only, sharers, task, alone=True)
            except Died as died:
                self._set_aside(only, task, died.death)
                deaths.append(died.death)
        if len(deaths) == texts:
            raise _of_texts(texts, deaths[-1])
        return rows

    def _without(
        self, known: Sequence[int], batch: TokenBatch, sharers: int, task: str | None
    ) -> NDArray[np.float32]:
        """The rows of a pass; those of the texts in quarantine are NaN."""
        check(batch, self.vocab, len(batch.ids))
        others = [text for text in range(len(batch.starts) - 1) if text not in known]
        if not others:
            raise _of_texts(len(known), self._quarantine[_digest(batch, known[0], task)])
        rows = np.full((len(batch.rows), self.hidden), np.nan, np.float32)
        rows[~np.isin(batch.owner, known)] = self.forward(_part(batch, others), sharers, task)
        return rows

    def _known(self, batch: TokenBatch, task: str | None) -> list[int]:
        """The texts of a pass that are in quarantine."""
        return [text for text in range(len(batch.starts) - 1) if _digest(batch, text, task) in self._quarantine]

    def _set_aside(self, batch: TokenBatch, task: str | None, death: Death) -> None:
        """Quarantine the one text of a pass. Raises EngineCrashed if it is not the text's fault."""
        try:
            self._supervisor.run(_PROBE, 1, task, alone=True)
        except Died as died:
            raise EngineCrashed(
                f"the engine's process dies of every text, of a single token too: {died.death.cause}. {ADVICE}",
                died.death.cause,
                died.death.words,
            ) from died
        self._quarantine[_digest(batch, 0, task)] = death
        _log.warning(
            "a text of %d tokens ended the engine's process again (%s); it has no result, and is not run any more",
            len(batch.ids),
            death.cause,
        )


def _digest(batch: TokenBatch, text: int, task: str | None) -> bytes:
    """What a text is known by in quarantine: nobody can read it from that."""
    ids = np.ascontiguousarray(batch.ids[batch.starts[text] : batch.starts[text + 1]], "<i4")
    return hashlib.blake2b(ids.tobytes(), digest_size=16, key=(task or "").encode()[:64]).digest()


def _part(batch: TokenBatch, texts: Sequence[int]) -> TokenBatch:
    """Some texts of a pass, ascending, as a pass."""
    lengths = np.diff(batch.starts)
    kept = np.isin(np.repeat(np.arange(len(lengths)), lengths), texts)
    wanted = np.isin(batch.owner, texts)
    starts = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths[texts], out=starts[1:])
    return TokenBatch(
        ids=batch.ids[kept],
        starts=starts,
        rows=(np.cumsum(kept) - 1)[batch.rows[wanted]].astype(np.int32),
        owner=np.searchsorted(texts, batch.owner[wanted]).astype(np.int32),
    )


def _of_texts(count: int, death: Death) -> EngineCrashed:
    which = "this text" if count == 1 else f"each of these {count} texts"
    return EngineCrashed(
        f"the engine's process died twice of {which}: {death.cause}. It is not run again while the model is open. "
        f"Leave it out or shorten it. {ADVICE}",
        death.cause,
        death.words,
        by_text=True,
    )


def _close(supervisor: Supervisor, owner: int) -> None:
    if os.getpid() == owner:
        supervisor.close()

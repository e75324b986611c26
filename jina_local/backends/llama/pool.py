"""The contexts of one model: each is lent to one pass at a time, and all are freed together with the weights.

A context that has run one task is told to run another; its weights are never changed. A few small contexts stay, and
one for longer passes. A pass beyond them, or a second long one at a time, gets a context that is freed after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from ...errors import EngineError
from .context import Context, SharedWeights

TEXTS = 32
_TOKENS, _LONG_TOKENS = 512, 2048
_LONG_ROWS = 128  # of the context for longer passes: a listwise block wants 126, its 125 documents' and the query's
# An encoder's context has room for logits that nobody reads. If they would take more bytes than this, the pass runs
# on a copy of the weights without their token table, made when first needed. With 250,002 rows, every pass does that
# is too long for a small context.
_MOST_LOGITS = 1 << 30


class ContextPool:
    """Owns a model and its contexts. Safe to use from several threads; see threads.shield for the main thread."""

    def __init__(self, weights: SharedWeights, size: int, copy_without_table: Callable[[], SharedWeights]) -> None:
        """`size`: of small contexts. `copy_without_table`: makes the weights for passes with too many logits."""
        self._weights, self._size = weights, size
        self._copy_without_table = copy_without_table
        self._copying = threading.Lock()
        self.tableless: SharedWeights | None = None
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._lent, self._closed = 0, False
        self.contexts: list[Context] = []  # the contexts that stay, in the order of their making
        self._idle: list[Context] = []  # small contexts that are not lent; the latest to return is at the end
        self._small = 0  # the number of small contexts, with those that are being made
        self._long: Context | None = None
        self._long_lent = False

    @contextlib.contextmanager
    def lend(self, tokens: int, texts: int, rows: int, task: str | None) -> Iterator[Context]:
        """Lend a context with room for such a pass. Raises EngineError if the pool is closed, or no room is left."""
        causal = self._weights.arch.causal
        rows = max(rows, texts) if causal else texts  # an encoder's tokens are all outputs in any case
        with self._changed:
            if self._closed:
                raise EngineError("this model is closed.")
            self._lent += 1
        try:
            if max(texts, rows) <= TEXTS and tokens <= _TOKENS:
                lent = self._lend_small(task)
            elif texts <= TEXTS and rows <= _LONG_ROWS and tokens <= _LONG_TOKENS and self._reserve_long():
                lent = self._lend_long()
            else:
                lent = self._lend_new(tokens, texts, rows)
            with lent as context:
                yield context
        finally:
            with self._changed:
                self._lent -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Free contexts and weights after the passes that still run. A forked child leaves them to its parent."""
        if os.getpid() != self._process:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: self._lent == 0)
        for context in self.contexts:
            context.free()
        for weights in (self._weights, self.tableless):
            if weights:
                weights.lib.api.llama_model_free(weights.model)

    @contextlib.contextmanager
    def _lend_small(self, task: str | None) -> Iterator[Context]:
        context = self._take_idle(task)
        if context is None:
            try:
                context = Context(self._weights, _TOKENS, TEXTS, TEXTS)
            except BaseException:
                with self._changed:
                    self._small -= 1
                    self._changed.notify_all()
                raise
            self.contexts.append(context)
        try:
            yield context
        finally:
            with self._changed:
                self._idle.append(context)
                self._changed.notify_all()

    def _take_idle(self, task: str | None) -> Context | None:
        """An idle context with the task's adapter; else None, for a new one, while there may be more; else any.

        For nano a change of adapters costs the next pass a little over 1 ms, and a context takes about 40 MB.
        """
        with self._changed:
            while True:
                of_task = [context for context in self._idle if context.task == task]
                if of_task or (self._idle and self._small >= self._size):
                    context = of_task[-1] if of_task else self._idle[0]
                    self._idle.remove(context)
                    return context
                if self._small < self._size:
                    self._small += 1
                    return None
                self._changed.wait()

    def _reserve_long(self) -> bool:
        with self._changed:
            free, self._long_lent = not self._long_lent, True
            return free

    @contextlib.contextmanager
    def _lend_long(self) -> Iterator[Context]:
        try:
            if self._long is None:
                self._long = Context(self._weights_for(_LONG_TOKENS), _LONG_TOKENS, TEXTS, _LONG_ROWS)
                self.contexts.append(self._long)
            yield self._long
        finally:
            with self._changed:
                self._long_lent = False

    @contextlib.contextmanager
    def _lend_new(self, tokens: int, texts: int, rows: int) -> Iterator[Context]:
        context = Context(self._weights_for(tokens), max(tokens, texts), texts, rows)
        try:
            yield context
        finally:
            context.free()

    def _weights_for(self, tokens: int) -> SharedWeights:
        """The weights for a context of so many tokens: an encoder's without their token table if it is a long one."""
        arch = self._weights.arch
        if arch.causal or 4 * arch.vocab * tokens <= _MOST_LOGITS:
            return self._weights
        with self._copying:
            if self.tableless is None:
                self.tableless = self._copy_without_table()
            return self.tableless

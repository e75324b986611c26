"""The run: contenders are opened, compared and timed in turns, so that ratios hold if the machine's speed drifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from ..errors import EngineError
from . import contenders, facts, work
from .agreement import agreement, bits, expected
from .contenders import Contender, Request
from .process import Process
from .report import Report, Row

LENGTHS = (3, 8, 16, 32, 64, 128, 256, 512)
LONG = (1024, 2048, 4096, 8192)
_TEXTS, _DOCUMENTS = 96, 32  # of the mix
_COMPARED = 16  # texts
_LEAST_BULK, _LEAST_SINGLE = 1.0, 0.1  # seconds of one turn

Step = Callable[[str], object]  # told before each step, in words
Running = list[tuple[Process, Row]]


class Bench:
    """A run. `report` holds at any moment what was measured so far."""

    def __init__(self, request: Request, *, count: int | None = None, rounds: int = 3, long: bool = False) -> None:
        """Find the contenders and make the texts; nothing is opened yet.

        count: texts of the mix; None: 96, or 32 of a reranker. long: single texts of up to 8,192 tokens, too.
        Raises ModelNotFound, ModelDamaged, UsageError, EngineMissing.
        """
        first, found = contenders.ours(request)
        task = contenders.task_of(first, request.task)
        ranks = first.model.scoring is not None
        lengths = (*LENGTHS, *(LONG if long else ()))
        self._work = work.make(first, task, count or (_DOCUMENTS if ranks else _TEXTS), lengths)
        self._contenders = contenders.contenders(request, found, self._work.query)
        self._rounds = rounds
        settings = {
            "texts": len(self._work.bulk[work.MIX]),
            "tokens": self._work.tokens,
            "rounds": rounds,
            "threads": request.threads,
            "device": request.device,
        }
        about = {"machine": facts.of_machine(), "versions": {}, "settings": settings}
        self.report = Report(first.model.name, task, "pairs" if ranks else "tokens", about)

    @property
    def steps(self) -> int:
        """How many steps `run` tells of at the most."""
        bulk, single = len(self._work.bulk), len(self._work.single)
        return len(self._contenders) * (2 + self._rounds * (bulk + single) + single)

    def run(self, step: Step) -> None:
        """Measure all. A contender that fails, or gives other results, is in `report.refused` with the reason.

        Raises EngineError if none of this package's own can be opened.
        """
        with ExitStack() as stack:
            running = self._alike(self._opened(stack, step), step)
            self.report.rows = [row for _, row in running]
            for _ in range(self._rounds):
                for name, some in self._work.bulk.items():
                    for process, row, seconds in self._turns(running, name, some, _LEAST_BULK, step):
                        rate = self._work.units[name] * len(seconds) / sum(seconds)
                        row.rates.setdefault(name, []).append(rate)
                        row.peak_mb = process.peak / 1e6
            for turn in range(1 + self._rounds):  # the first makes room for each length, and does not count
                for tokens, text in self._work.single.items():
                    what, least = f"one text of {tokens} tokens", _LEAST_SINGLE if turn else 0
                    for _, row, seconds in self._turns(running, what, [text], least, step):
                        if turn:
                            row.latency.setdefault(tokens, []).extend(seconds)

    def _turns(
        self, running: Running, what: str, some: list[str], least: float, step: Step
    ) -> Iterator[tuple[Process, Row, list[float]]]:
        """One turn of each; a contender whose process ends takes no further part."""
        for process, row in tuple(running):
            step(f"{row.name}: {what}")
            try:
                yield process, row, process.timed(some, least)
            except EngineError as error:
                self._refuse(process.contender, f"ended at {what}: {error}")
                running.remove((process, row))

    def _opened(self, stack: ExitStack, step: Step) -> Running:
        opened = []
        for contender in self._contenders:
            step(f"{contender.name}: opening")
            try:
                process = stack.enter_context(Process(contender))
            except EngineError as error:
                self._refuse(contender, f"cannot be opened: {error}")
                continue
            self.report.facts["versions"] |= process.versions
            row = Row(contender.name, contender.file_mb, process.load_s, process.about)
            opened.append((process, row))
        return opened

    def _alike(self, opened: Running, step: Step) -> Running:
        """The contenders that agree with the most exact weights of our own."""
        own = [process for process, _ in opened if process.contender.ours]
        if not own:
            raise EngineError("; ".join(self.report.refused.values()))
        exact = max(own, key=lambda process: bits(process.contender.weights))
        self.report.reference = exact.contender.name
        some = self._work.bulk[work.MIX][:_COMPARED]
        reference = exact.results(some)
        alike = []
        for process, row in opened:
            step(f"{row.name}: comparing")
            least = expected(process.contender.weights, exact.contender.weights, scores=reference.ndim == 1)
            try:
                row.agreement = agreement(process.results(some), reference)
            except EngineError as error:
                self._refuse(process.contender, f"ended at the first texts: {error}")
                continue
            if row.agreement < least:
                kind = "scores: their correlation" if reference.ndim == 1 else "vectors: their cosine"
                why = f"gives other {kind} with those of {exact.contender.name} is {row.agreement:.4f}"
                self._refuse(process.contender, f"{why}, and {least:g} is the least that its weights explain")
                continue
            alike.append((process, row))
        return alike

    def _refuse(self, contender: Contender, why: str) -> None:
        self.report.refused[contender.name] = f"{contender.name} {why}".rstrip(".")

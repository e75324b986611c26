"""One MLX base for four tasks: what the converter writes, and what the engine computes with it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convert import source as source_
from convert.merge import merge
from convert.mlx.folders import to_mlx
from convert.mlx.quantise import Quantised, dequantise
from convert.verify.reference import hidden_states
from jina_local import backends, load
from jina_local.backends import padding
from jina_local.backends.mlx import MlxBackend
from jina_local.errors import EngineError, ModelDamaged, UsageError
from jina_local.formats import manifest
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights import architecture
from jina_local.weights.adapters import mlx_file as format_
from jina_local.weights.checkpoint import Checkpoint
from tests import tiny
from tests.backends.test_mlx import batch, cosines
from tests.convert.test_mlx_folders import rewrite, small_source

pytestmark = pytest.mark.mlx

LENGTHS = (1, 7, 8, 33, 50, 3)


@pytest.fixture(scope="module", params=["nano", "small"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(kind, tmp_path_factory) -> Path:
    """A published checkpoint; one of its adapters has a scale other than one."""
    folder = small_source(tmp_path_factory.mktemp("source") / kind, kind)
    configure(folder / "adapters/clustering/adapter_config.json", lora_alpha=1.5 * tiny.RANK)
    return folder


@pytest.fixture(scope="module")
def separate(source, tmp_path_factory):
    """Bits -> a folder of base and adapters, made once."""
    made: dict[int, Path] = {}

    def make(bits: int) -> Path:
        if bits not in made:
            made[bits] = tmp_path_factory.mktemp("separate") / str(bits)
            to_mlx(source, made[bits], tasks=list(tiny.TASKS), bits=bits, separate=True)
        return made[bits]

    return make


@pytest.fixture(scope="module")
def engine(separate):
    backend = beside(separate(32))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def texts(engine) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, engine.vocab, n) for n in LENGTHS]


def configure(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def files_of(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted((folder / "adapters").iterdir())}


def beside(folder: Path, adapters: dict[str, Path] | None = None) -> backends.Backend:
    return backends.open_backend("mlx", folder, adapters=adapters or files_of(folder), device="cpu")


def with_adapter(folder: Path, task: str) -> dict[str, np.ndarray]:
    """Base and adapter as they stand in the files of a separate folder, summed up in numpy."""
    config = json.loads((folder / "config.json").read_text())
    settings = config.get("quantization", {})
    with SafetensorsFile(folder / "model.safetensors") as base, SafetensorsFile(files_of(folder)[task]) as adapter:
        scale = float(adapter.metadata["alpha"]) / int(adapter.metadata["rank"])
        out = {}
        for name in architecture.tensors(architecture.from_config(config)):
            stem = f"model.{name.removesuffix('.weight')}"
            if f"{stem}.scales" in base.tensors:
                code = settings.get(stem, settings)
                parts = Quantised(*(base.read(f"{stem}.{part}") for part in ("weight", "scales", "biases")))
                weight = dequantise(parts, code["bits"], code["group_size"])
            else:
                weight = base.read_f32(f"model.{name}")
            factor = f"{name.removesuffix('.weight')}.lora_"
            if f"{factor}A" in adapter.tensors:
                a, b = (adapter.read_f32(factor + x).astype(np.float64) for x in "AB")
                weight = (weight + scale * (b @ a)).astype(np.float32)
            out[name] = weight
        return out


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_what_is_written(source, separate, kind, bits, tmp_path):
    out = separate(bits)
    with Checkpoint(source) as checkpoint:
        digest = source_.base_digest(checkpoint)
        base = dict(checkpoint.merged(None))
    body = manifest.load(out)
    assert manifest.verify(out) == []
    assert {n: (e.task, e.weights) for n, e in body.files.items() if e.task or e.weights} == {
        "model.safetensors": (None, f"{bits}bit"),
        **{f"adapters/{task}.safetensors": (task, None) for task in tiny.TASKS},
    }
    assert {f"adapters/{task}/adapter_model.safetensors" for task in tiny.TASKS} < set(body.source.files)
    with SafetensorsFile(out / "model.safetensors") as file:
        assert file.metadata == {"format": "mlx", "base": digest}
        half = np.float32 if bits == 32 else np.float16
        np.testing.assert_array_equal(file.read("model.norm.weight"), base["norm.weight"].astype(half))
    for task, path in files_of(out).items():
        with SafetensorsFile(path) as mine:
            header = format_.parse(mine.metadata, str(path))
            assert {t.dtype for t in mine.tensors.values()} == {"F32" if bits == 32 else "F16"}
            found = {name: mine.read_f32(name) for name in mine.tensors}
        assert (header.task, header.rank, header.base) == (task, tiny.RANK, digest)
        assert header.alpha == tiny.RANK * (1.5 if task == "clustering" else 1)
        assert header.prompts[header.default_prompt] == "Document: "
        with SafetensorsFile(source / "adapters" / task / "adapter_model.safetensors") as theirs:
            assert len(theirs.tensors) == len(found)
            for name in theirs.tensors:
                data = theirs.read_f32(name).astype(half).astype(np.float32)
                plain = name.removeprefix("base_model.model.").removesuffix(".weight")
                np.testing.assert_array_equal(found[plain], data, err_msg=plain)
    to_mlx(source, tmp_path / "again", tasks=list(tiny.TASKS), bits=bits, separate=True)
    assert manifest.load(tmp_path / "again").files == body.files


@pytest.mark.sampled
def test_run_time_equals_merged_at_32_bits(source, engine, texts, tmp_path):
    to_mlx(source, tmp_path / "merged", tasks=list(tiny.TASKS), bits=32)
    for task in tiny.TASKS:
        merged = MlxBackend(tmp_path / "merged" / task, device="cpu")
        for rows in ("last", "all", [[0, *([len(t) - 1] if len(t) > 1 else [])] for t in texts]):
            mine, theirs = engine.forward(batch(texts, rows), 1, task), merged.forward(batch(texts, rows))
            assert cosines(mine, theirs).min() >= 0.999999
            np.testing.assert_allclose(mine, theirs, atol=2e-5)
        merged.close()


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [4, 5, 6, 8, 16])
def test_a_rounded_base_has_the_adapter_added_to_it_exactly(separate, texts, bits):
    backend = beside(separate(bits))
    for task in ("retrieval", "clustering"):
        weights = with_adapter(separate(bits), task)
        expected = np.stack([hidden_states(backend.arch, weights, ids)[-1] for ids in texts])
        mine = backend.forward(batch(texts), 1, task)
        assert cosines(mine, expected).min() >= 0.999999
        np.testing.assert_allclose(mine, expected, atol=2e-5)
    backend.close()


def test_a_published_checkpoint_runs_all_its_adapters(source, texts):
    backend = beside(source)
    for task in tiny.TASKS:
        merged = backends.open_backend("mlx", source, task=task, device="cpu")
        mine, theirs = backend.forward(batch(texts), 1, task), merged.forward(batch(texts))
        merged.close()
        assert cosines(mine, theirs).min() >= 0.999999
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    backend.close()


@pytest.mark.sampled
def test_each_task_has_vectors_of_its_own_and_they_come_back_bit_for_bit(engine, texts):
    first = {task: engine.forward(batch(texts), 1, task) for task in tiny.TASKS}
    for n, task in enumerate(tiny.TASKS):
        for other in tiny.TASKS[:n]:
            assert cosines(first[task], first[other]).min() < 0.99
    for _ in range(5):
        for task in reversed(tiny.TASKS):
            np.testing.assert_array_equal(engine.forward(batch(texts), 1, task), first[task])


@pytest.mark.sampled
def test_threads_with_different_tasks_at_once(engine, texts):
    expected = {task: engine.forward(batch(texts), 1, task) for task in tiny.TASKS}
    asked = [tiny.TASKS[n % len(tiny.TASKS)] for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda task: engine.forward(batch(texts), 1, task), asked))
    for task, rows in zip(asked, found, strict=True):
        np.testing.assert_array_equal(rows, expected[task])


def test_one_task_in_another_is_refused(engine, source, texts):
    with pytest.raises(EngineError, match="name a task: .*retrieval"):
        engine.forward(batch(texts))
    with pytest.raises(EngineError, match="no adapter for task 'search'"):
        engine.forward(batch(texts), 1, "search")
    merged = backends.open_backend("mlx", source, task="retrieval", device="cpu")
    with pytest.raises(EngineError, match="Its weights are merged"):
        merged.forward(batch(texts), 1, "retrieval")
    merged.close()
    with pytest.raises(UsageError, match="one or the other"):
        MlxBackend(source, task="retrieval", adapters={"retrieval": source / "adapters/retrieval"})


def test_an_adapter_may_leave_layers_alone(source, texts, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")

    def keep_queries(tensors):
        for name in list(tensors):
            if "layers.1.self_attn.q_proj" not in name:
                del tensors[name]

    rewrite(copy / "adapters/retrieval/adapter_model.safetensors", keep_queries)
    to_mlx(copy, tmp_path / "out", tasks=["retrieval"], bits=32, separate=True)
    with SafetensorsFile(tmp_path / "out/adapters/retrieval.safetensors") as file:
        assert sorted(file.tensors) == [f"layers.1.self_attn.q_proj.lora_{x}" for x in "AB"]
    with Checkpoint(copy) as checkpoint:
        weights = dict(checkpoint.merged("retrieval"))
        expected = np.stack([hidden_states(checkpoint.arch, weights, ids)[-1] for ids in texts])
    backend = beside(tmp_path / "out")
    np.testing.assert_allclose(backend.forward(batch(texts), 1, "retrieval"), expected, atol=2e-5)
    backend.close()


@pytest.mark.parametrize("bits", [8, 16])
def test_float16_as_on_metal(separate, texts, bits):
    """The arithmetic of the Metal path, on the CPU: codes stay codes, and no sum is widened."""
    import mlx.core as mx

    from jina_local.backends.mlx import adapters
    from jina_local.backends.mlx.folder import open_folder
    from jina_local.backends.mlx.transformer import Transformer

    folder = open_folder(separate(bits), None)
    loaded = adapters.load({"clustering": files_of(separate(bits))["clustering"]}, folder, mx.float16)["clustering"]
    model = Transformer(folder.arch, dict(folder.weights(mx.float16, keep_packed=True)), fused=False)
    folder.close()
    assert {f.dtype for block in loaded.blocks for pair in block.values() for f in (pair.a, pair.b)} == {mx.float16}
    short = [t[:12] for t in texts]
    mine = np.array(model(padding.pad(batch(short), 8), loaded))
    weights = with_adapter(separate(bits), "clustering")
    expected = np.stack([hidden_states(folder.arch, weights, ids)[-1] for ids in short])
    assert cosines(mine, expected).min() > 0.9999


def test_an_adapter_fits_every_width_of_its_base(separate, texts):
    backend = beside(separate(4), files_of(separate(8)))
    own = beside(separate(4))
    np.testing.assert_array_equal(
        backend.forward(batch(texts), 1, "retrieval"), own.forward(batch(texts), 1, "retrieval")
    )
    backend.close()
    own.close()


def test_load_serves_all_tasks_from_one_base(separate, source):
    words = ["one", "two words", "three little words"]
    with load(separate(16), device="cpu") as model, load(source, device="cpu") as published:
        assert set(model.spec.tasks) == set(published.spec.tasks) == set(tiny.TASKS)
        assert "one base serves" in " ".join(model.spec.origin.reasons)
        first = model.encode(words, task="retrieval")
        for task in tiny.TASKS:
            assert cosines(model.encode(words, task=task), published.encode(words, task=task)).min() > 0.9999
        np.testing.assert_array_equal(model.encode(words, task="retrieval"), first)


def test_a_merged_source_has_no_adapters_to_keep(source, tmp_path):
    merge(source, tmp_path / "merged", tasks=["clustering"])
    with pytest.raises(UsageError, match="is merged already: there are no adapters to keep beside a base"):
        to_mlx(tmp_path / "merged", tmp_path / "out", tasks=["clustering"], bits=8, separate=True)
    assert not (tmp_path / "out").exists()


def test_factors_beyond_float16_are_kept_at_32_bits_only(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")

    def enlarge(tensors):
        dtype, data = tensors["base_model.model.layers.0.mlp.up_proj.lora_B.weight"]
        data[0, 0] = 1e5 if dtype == "F32" else 0x47C3  # the upper half of 1e5

    rewrite(copy / "adapters/retrieval/adapter_model.safetensors", enlarge)
    with pytest.raises(ModelDamaged, match=r"retrieval.*up_proj\.lora_B.*float16; use a 32-bit form"):
        to_mlx(copy, tmp_path / "out", tasks=["retrieval"], bits=8, separate=True)
    assert not (tmp_path / "out").exists()
    to_mlx(copy, tmp_path / "out", tasks=["retrieval"], bits=32, separate=True)

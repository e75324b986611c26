"""Checkpoint -> GGUF: every key, every tensor, the vocabulary as llama.cpp reads it, and how it fails."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from convert.gguf import engine
from convert.gguf.files import FILE_TYPES, NEEDS_IMATRIX, choose_types, to_gguf
from convert.verify import reference
from jina_local.errors import EngineError, ModelDamaged, OutputError, UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.files import sha256
from jina_local.formats.gguf import read_header
from jina_local.text.gguf_vocabulary import tokenizer_json
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, tensor_names
from jina_local.weights.checkpoint import Checkpoint

from .. import tiny
from ..text.test_gguf_vocabulary import TEXTS, hostile

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'jina_local[convert]'")
pytestmark = pytest.mark.llama

KINDS = ("small", "nano")
# Label -> the largest relative root mean square error of a linear layer, on weights drawn from a normal.
ERRORS = {
    "F32": 0.0, "F16": 3e-4, "BF16": 3e-3, "Q8_0": 0.007, "Q6_K": 0.025, "Q5_K_M": 0.045, "Q5_K_S": 0.045,
    "Q5_0": 0.05,
    "Q4_K_M": 0.085, "Q4_0": 0.1, "IQ4_NL": 0.09, "IQ4_XS": 0.09, "Q3_K_M": 0.2, "Q2_K": 0.4,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory):
    """(kind, source, output): two tasks for nano, all types of ERRORS."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    tasks = ["retrieval"] if kind == "small" else ["retrieval", "clustering"]
    tiny.write(folder / "source", kind, tasks=tuple(tasks))
    to_gguf(folder / "source", folder / "out", tasks=tasks, types=list(ERRORS), revision="abc", source_name="tiny")
    return kind, folder / "source", folder / "out"


def path_of(kind: str, out: Path, label: str, task: str = "retrieval") -> Path:
    return out / f"v5-{kind}-{task}-{label}.gguf"


def merged(source: Path, task: str = "retrieval") -> dict[str, np.ndarray]:
    with Checkpoint(source) as checkpoint:
        return dict(checkpoint.merged(task))


@pytest.mark.sampled
def test_the_folder_holds_what_its_manifest_says(converted):
    kind, source, out = converted
    found = manifest.load(out)
    assert manifest.verify(out) == []
    assert (found.form, found.model) == ("gguf", f"jina-embeddings-v5-text-{kind}")
    assert (found.source.name, found.source.revision) == ("tiny", "abc")
    assert found.source.files["model.safetensors"] == sha256(source / "model.safetensors")
    assert "adapters/retrieval/adapter_model.safetensors" in found.source.files
    entry = found.files[f"v5-{kind}-retrieval-Q4_K_M.gguf"]
    assert (entry.task, entry.weights) == ("retrieval", "Q4_K_M")
    tasks = 1 if kind == "small" else 2
    assert len(found.files) == len(ERRORS) * tasks + 2
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert found.tokenizer == Tokenizer.from_file(source / "tokenizer.json").fingerprint()
    assert sorted(p.name for p in out.parent.iterdir()) == ["out", "source"], "nothing is left beside the output"


def test_the_float32_file_holds_the_merged_weights_bit_for_bit(converted):
    kind, source, out = converted
    for task in ("retrieval",) if kind == "small" else ("retrieval", "clustering"):
        path = path_of(kind, out, "F32", task)
        header, raw = read_header(path), path.read_bytes()
        arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0])
        renamed = tensor_names.gguf_names(arch)
        weights = merged(source, task)
        assert set(header.tensors) == {renamed[name] for name in weights}
        for name, data in weights.items():
            place = header.tensors[renamed[name]]
            assert raw[place.start : place.start + place.nbytes] == data.tobytes(), name


def test_every_type_reads_back_close_to_the_weights(converted):
    kind, source, out = converted
    weights = merged(source)
    for label, bound in ERRORS.items():
        path = path_of(kind, out, label)
        header = read_header(path)
        assert header.weights == label
        arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0])
        back = tensor_names.checkpoint_names(arch)
        read = {back[t.name]: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
        assert read.keys() == weights.keys()
        for name, data in weights.items():
            if data.ndim == 1:
                assert np.array_equal(read[name], data), f"{label} {name}: norms stay in float32"
            else:
                error = float(np.sqrt(np.mean((read[name] - data) ** 2) / np.mean(data**2)))
                assert error <= bound, f"{label} {name}: {error}"
    sizes = [path_of(kind, out, label).stat().st_size for label in ("F32", "F16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_keys_are_complete(converted):
    kind, source, out = converted
    config = json.loads((source / "config.json").read_text())
    arch = {"small": "qwen3", "nano": "eurobert"}[kind]
    keys = read_header(path_of(kind, out, "Q4_K_M")).keys
    expected = {
        "general.architecture": arch, "general.type": "model", "general.file_type": 15,
        "general.name": f"jina-embeddings-v5-text-{kind}-retrieval", "general.finetune": "retrieval",
        "general.basename": f"jina-embeddings-v5-text-{kind}", "general.license": "cc-by-nc-4.0",
        "general.quantization_version": 2, "general.base_model.count": 1,
        "general.base_model.0.name": f"jina-embeddings-v5-text-{kind}",
        "general.base_model.0.organization": "jinaai", "general.base_model.0.version": "abc",
        "general.base_model.0.repo_url": f"https://huggingface.co/jinaai/jina-embeddings-v5-text-{kind}",
        "general.tags": [b"feature-extraction", b"sentence-similarity", b"embeddings"],
        f"{arch}.block_count": 2, f"{arch}.context_length": 1024, f"{arch}.embedding_length": 256,
        f"{arch}.feed_forward_length": 256, f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.key_length": config["head_dim"], f"{arch}.attention.value_length": config["head_dim"],
        f"{arch}.attention.layer_norm_rms_epsilon": pytest.approx(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": config["rope_theta"], f"{arch}.vocab_size": config["vocab_size"],
        f"{arch}.pooling_type": 3,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": {"small": "qwen2", "nano": "jina-v5-nano"}[kind],
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        "jina_local.model": f"jina-embeddings-v5-text-{kind}", "jina_local.task": "retrieval",
        "jina_local.prompts": '{"query": "Query: ", "document": "Document: "}',
        "jina_local.default_prompt": "document", "jina_local.matryoshka_dims": [32, 64, 128, 256],
        "jina_local.tokenizer_fingerprint": manifest.load(out).tokenizer,
    }  # fmt: skip
    if kind == "nano":
        expected |= {
            "eurobert.attention.causal": False,
            "eurobert.rope.scaling.type": "none",
            "tokenizer.ggml.add_eos_token": True,
        }
    rest = {"general.size_label", *(f"tokenizer.ggml.{k}" for k in ("tokens", "merges", "token_type"))}
    assert {k: v for k, v in keys.items() if k not in rest} == expected
    assert rest <= keys.keys()


def llama_ids(path: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp's own tokenizer makes of the texts, from the file's vocabulary alone."""
    llama = engine.engine()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    with engine.heard():
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        assert model
        vocab, out = llama.llama_model_get_vocab(model), []
        for text in texts:
            raw = text.encode()
            room = (ctypes.c_int32 * (len(raw) + 8))()
            count = llama.llama_tokenize(vocab, raw, len(raw), room, len(room), True, True)
            assert count >= 0
            out.append(list(room[:count]))
        llama.llama_model_free(model)
    return out


def test_llama_cpp_reads_our_vocabulary_as_we_do(converted):
    kind, source, out = converted
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS]
    assert llama_ids(path_of(kind, out, "Q8_0"), texts) == [tokenizer.ids(text) for text in texts]
    rebuilt = Tokenizer(tokenizer_json(read_header(path_of(kind, out, "Q8_0"))), "rebuilt")
    assert rebuilt.fingerprint() == tokenizer.fingerprint()


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.skipif(not tiny.SHARED.exists(), reason="needs ../shared/data, which is not beside this checkout")
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_the_real_vocabularies_as_we_do(tmp_path, kind):
    thin = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 64}
    source = tiny.write(tmp_path / "source", kind, real=True, dtype="F16", tasks=("retrieval",), config=thin)
    to_gguf(source, tmp_path / "out", tasks=["retrieval"], types=["F32"])
    path = path_of(kind, tmp_path / "out", "F32")
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    # Normalised as the small tokenizer does itself; llama.cpp is slow on one word of 100,000 letters.
    texts = [unicodedata.normalize("NFC", text)[:2_000] for text in hostile()]
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    differ = [t for t, found in zip(texts, llama_ids(path, texts), strict=True) if found != tokenizer.ids(t)]
    # llama.cpp takes any token called </s> for a control token; in Qwen's vocabulary it is a piece of a word.
    assert all("</s>" in text for text in differ), [text for text in differ if "</s>" not in text]
    assert len(differ) <= (1 if kind == "small" else 0)


def test_stock_llama_cpp_gives_the_reference_vectors(converted, stock_llama):
    kind, source, out = converted
    with engine.heard():
        stock = stock_llama(str(path_of(kind, out, "F32")), embedding=True, n_ctx=512, verbose=False)
        text = "Document: The quick brown fox"
        found = np.array(stock.embed(text, normalize=True), np.float32)
        stock.close()
    ids = Tokenizer.from_file(source / "tokenizer.json").ids(text)
    with Checkpoint(source) as checkpoint:
        states = reference.hidden_states(checkpoint.arch, dict(checkpoint.merged("retrieval")), ids)
    wanted = states[-1] / np.linalg.norm(states[-1])
    assert found @ wanted > 0.99999


_AGAIN = """
import sys
from pathlib import Path
from convert.gguf.files import to_gguf
to_gguf(Path(sys.argv[1]), Path(sys.argv[2]), tasks=["retrieval"], types=["Q4_K_M", "Q8_0", "Q4_0", "F32"],
        imatrix=Path(sys.argv[3]), threads=int(sys.argv[4]))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_nothing_else(tmp_path):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    (tmp_path / "texts").write_text("The quick brown fox\n\nJupiter is the largest planet")
    for out, threads in (("a", "1"), ("b", "3")):
        command = [sys.executable, "-c", _AGAIN, source, tmp_path / out, tmp_path / "texts", threads]
        done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    for path in (tmp_path / "a").glob("*.gguf"):
        assert os.fsencode(tmp_path) not in path.read_bytes()


@pytest.mark.parametrize(
    ("types", "told"),
    [
        (["Q4_K_L"], "unknown type 'Q4_K_L', did you mean 'Q4_K_"),
        (["nonsense"], "unknown type 'NONSENSE'. Possible: F32, F16, Q4_0"),
        ([], "no type given. Possible: F32"),
        (["q8_0", "IQ2_XXS"], "type IQ2_XXS needs an importance matrix: give --imatrix TEXTS"),
    ],
)
def test_types_that_cannot_be_made_are_refused(types, told):
    with pytest.raises(UsageError) as error:
        choose_types(types, with_imatrix=False)
    assert told in str(error.value)


def test_types_are_taken_in_any_case_and_once():
    assert choose_types(["q4_k_m", "Q8_0", "Q4_K_M"], with_imatrix=False) == ["Q4_K_M", "Q8_0"]
    assert choose_types(list(FILE_TYPES), with_imatrix=True) == list(FILE_TYPES)
    assert set(NEEDS_IMATRIX) < set(FILE_TYPES)


def test_an_unknown_task_is_refused(tmp_path):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval", "clustering"))
    with pytest.raises(UsageError, match=r"unknown task 'classify'; .*source has: retrieval, clustering"):
        to_gguf(source, tmp_path / "out", tasks=["retrieval", "classify"], types=["F32"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", [0, True, 1.5, 1000])
def test_threads_out_of_range_are_refused(tmp_path, threads):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    with pytest.raises(UsageError, match=r"threads .* is out of range; give a whole number from 1 to 512"):
        to_gguf(source, tmp_path / "out", tasks=["retrieval"], types=["F32"], threads=threads)


def spoil(path: Path, name: str, value: float) -> None:
    """Overwrite the first number of a float32 tensor in a safetensors file."""
    with safetensors.SafetensorsFile(path) as file:
        start = file.tensors[name].start
    with path.open("r+b") as raw:
        raw.seek(start)
        raw.write(np.float32(value).tobytes())


def test_a_failed_conversion_leaves_the_old_folder_as_it_was(tmp_path):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    out = tmp_path / "out"
    to_gguf(source, out, tasks=["retrieval"], types=["Q8_0"])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    spoil(source / "model.safetensors", "norm.weight", np.nan)
    with pytest.raises(ModelDamaged, match=r"norm\.weight: 1 of 256 values are NaN or infinite"):
        to_gguf(source, out, tasks=["retrieval"], types=["Q8_0"], force=True)
    spoil(source / "model.safetensors", "norm.weight", 1.0)

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "retrieval Q8_0" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_gguf(source, out, tasks=["retrieval"], types=["Q8_0"], force=True, progress=interrupt)
    with pytest.raises(OutputError, match=r"out exists. Give --force"):
        to_gguf(source, out, tasks=["retrieval"], types=["Q8_0"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_an_adapter_that_overflows_is_refused(tmp_path):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    adapter = source / "adapters" / "retrieval" / "adapter_model.safetensors"
    for factor in "AB":
        spoil(adapter, f"base_model.model.layers.1.mlp.up_proj.lora_{factor}.weight", 1e30)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(ModelDamaged, match=r"layers\.1\.mlp\.up_proj\.weight overflows when the adapter 'retrieval'"),
    ):
        to_gguf(source, tmp_path / "out", tasks=["retrieval"], types=["F32"])
    assert not (tmp_path / "out").exists()


def test_a_weight_too_large_for_half_precision_is_refused_before_the_engine_sees_it(tmp_path, capfd):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    spoil(source / "model.safetensors", "embed_tokens.weight", -1e6)
    with pytest.raises(UsageError, match=r"type F16 cannot hold embed_tokens\.weight: it has values up to 1e\+06"):
        to_gguf(source, tmp_path / "out", tasks=["retrieval"], types=["F16"])
    to_gguf(source, tmp_path / "out", tasks=["retrieval"], types=["BF16"])
    assert capfd.readouterr() == ("", "")


def test_what_llama_cpp_refuses_comes_with_its_reason(converted, tmp_path, capfd):
    kind, _, out = converted
    with pytest.raises(EngineError, match=r"could not write x\.gguf: requantizing from type q8_0 is disabled"):
        engine.quantize(path_of(kind, out, "Q8_0"), tmp_path / "x.gguf", FILE_TYPES["Q4_0"], threads=1)
    with pytest.raises(
        EngineError,
        match=r"x\.gguf: ERROR: this quantization requires an importance matrix! - offending tensor: blk\.0\.attn_k",
    ):
        engine.quantize(path_of(kind, out, "F32"), tmp_path / "x.gguf", FILE_TYPES["IQ2_XXS"], threads=1)
    assert capfd.readouterr() == ("", "")


_FULL_DISK = """
import resource, sys
from pathlib import Path
from convert.gguf.files import to_gguf
from jina_local.errors import OutputError

def fill(what, done, of):  # from the first tensor of Q8_0 on, no file may grow beyond this
    if what == "retrieval Q8_0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))

try:
    to_gguf(Path(sys.argv[1]), Path(sys.argv[2]), tasks=["retrieval"], types=["Q8_0"], progress=fill)
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_fills_up_under_llama_cpp_is_noticed(tmp_path):
    source = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    command = [sys.executable, "-c", _FULL_DISK, source, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert "v5-nano-retrieval-Q8_0.gguf" in done.stdout
    assert "the disk is full" in done.stdout
    assert done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_the_log_goes_back_to_whoever_had_it(capfd):
    llama = engine.engine()
    said: list[bytes] = []
    mine = llama.llama_log_callback(lambda level, text, _: said.append(text))
    before, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    try:
        llama.llama_log_set(mine, ctypes.c_void_p(0))
        with engine.heard() as errors:
            assert not llama.llama_model_load_from_file(b"/nonexistent.gguf", llama.llama_model_default_params())
        assert "nonexistent" in " ".join(errors)
        assert said == []
        llama.llama_model_load_from_file(b"/nonexistent.gguf", llama.llama_model_default_params())
        assert b"nonexistent" in b" ".join(said)
    finally:
        llama.llama_log_set(before, data)
    assert capfd.readouterr() == ("", "")


def test_names_cover_every_tensor_both_ways():
    for kind in KINDS:
        config = {**tiny.CONFIGS[kind], **tiny.FULL[kind]}
        arch = architecture.from_config(config)
        forth, back = tensor_names.gguf_names(arch), tensor_names.checkpoint_names(arch)
        assert list(forth) == list(architecture.tensors(arch))
        assert {back[name] for name in forth.values()} == set(forth)
    assert tensor_names.gguf_names(arch)["layers.11.self_attn.o_proj.weight"] == "blk.11.attn_output.weight"


def test_a_table_that_lacks_a_tensor_is_found(monkeypatch):
    arch = architecture.from_config({**tiny.CONFIGS["small"], **tiny.FULL["small"]})
    monkeypatch.setitem(tensor_names.TABLES, "qwen3", tensor_names.TABLES["eurobert"])
    with pytest.raises(ValueError, match=r"no GGUF name for \['layers\.0\.self_attn\.k_norm\.weight'"):
        tensor_names.gguf_names(arch)

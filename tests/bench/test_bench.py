"""`jina-local bench`: its texts, who takes part, whose results count, and what is kept of a run that ends early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from jina_local import console
from jina_local.backends import cpu
from jina_local.bench import agreement, contenders, measure, ours, process, rivals, texts, work
from jina_local.bench.contenders import Contender, Request
from jina_local.cli import main
from jina_local.errors import EngineError, ModelNotFound, UsageError
from jina_local.inference.loaded import open_tokenizer
from jina_local.store.find import find
from tests import made

KINDS = ("nano", "small", "v3", "reranker-v2", "reranker-v3")


# --- texts


@pytest.mark.parametrize("kind", KINDS)
def test_single_texts_have_the_tokens_that_they_are_said_to_have(kind):
    files = find(made.checkpoint(kind), offline=True)
    task = contenders.task_of(files, None)
    made_of = work.make(files, task, 12, (3, 8, 32, 100, 100_000))
    tokenizer = open_tokenizer(files)
    prefix = {"nano": "Document: ", "small": "Document: ", "v3": "Represent the document for retrieval: "}.get(kind)
    for tokens, text in made_of.single.items():
        counted = len(tokenizer.plain([text])[0]) if prefix is None else len(tokenizer.ids(prefix + text))
        assert counted == tokens
    assert 100 in made_of.single
    assert 100_000 not in made_of.single
    assert (made_of.query is None) == (prefix is not None)
    assert made_of.units["mix"] == (made_of.tokens if prefix is not None else 12)


def test_the_mix_is_lognormal_and_the_same_every_time():
    lengths = texts.mix(4000)
    assert lengths == texts.mix(4000)
    assert 57 < np.median(lengths) < 63
    assert (min(lengths), max(lengths)) == (3, 500)
    assert max(texts.mix(4000, 200)) == 200


def test_a_vocabulary_without_words_is_refused():
    class Empty:
        where = "tokenizer.json"

        def vocabulary(self):
            return {"Ġ1": 0, "word": 1}

    with pytest.raises(UsageError, match=r"tokenizer\.json: has no plain words"):
        texts.words(Empty())


# --- who takes part


def test_every_weight_type_of_a_folder_takes_part_the_default_first():
    first, found = contenders.ours(Request(str(made.gguf("nano"))))
    assert first is found[0]
    assert first.label == find(made.gguf("nano"), offline=True).label
    assert {files.label for files in found} == set(made.TYPES)


@pytest.mark.mlx
@pytest.mark.llama
def test_a_name_stands_for_every_engine_that_has_files_of_it():
    _, found = contenders.ours(Request("pico"))
    assert {(files.backend, files.label) for files in found} == {("llama", "Q8_0"), ("mlx", "F16"), ("onnx", "F16")}
    _, found = contenders.ours(Request("pico", backend="mlx"))
    assert [files.backend for files in found] == ["mlx"]


def test_weights_that_were_asked_for_take_part_and_absent_ones_are_an_error():
    folder = str(made.gguf("nano"))
    _, found = contenders.ours(Request(folder, weights=("Q4_0", "q8_0")))
    assert {files.label for files in found} == {"Q4_0", "Q8_0"}
    with pytest.raises(UsageError, match="no weights 'Q5_0'"):
        contenders.ours(Request(folder, weights=("Q8_0", "Q5_0")))
    with pytest.raises(ModelNotFound, match="Looked for"):
        contenders.ours(Request("v5-small", weights=("Q8_0",)))


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("nano", {"beside": ["transformers"]}, "--checkpoint FOLDER says where it is"),
        ("nano", {"beside": ["transformers"], "checkpoint": Path("/")}, r"/: has no config\.json"),
        ("reranker-v2", {"beside": ["llama"]}, "ranks nothing"),
        ("reranker-v2", {"task": "retrieval"}, "has: rerank"),
        ("nano", {"task": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_opened(kind, words, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    folder = made.gguf(kind) if kind == "nano" else made.reranker(kind, "F32")
    with pytest.raises(UsageError, match=message):
        measure.Bench(Request(str(folder), **words))


def test_a_program_that_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else True)
    request = Request(str(made.gguf("nano")), beside=["transformers"])
    with pytest.raises(UsageError, match="--beside transformers needs torch: pip install torch"):
        measure.Bench(request)


# --- whose results count


def test_agreement_is_the_mean_cosine_or_the_correlation_of_scores():
    a = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert agreement.agreement(5 * a, a) == pytest.approx(1)
    assert agreement.agreement(np.array([[4.0, -3.0], [0.0, 1.0]]), a) == pytest.approx(0.5)
    assert agreement.agreement(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0])) == pytest.approx(1)
    assert agreement.agreement(a[:1], a) == -1
    assert agreement.agreement(np.array([[np.nan, 1.0], [0.0, 1.0]]), a) == -1


def test_fewer_bits_may_differ_by_more():
    assert [agreement.bits(label) for label in ("BF16", "Q8_0", "8bit", "IQ4_XS", "int8")] == [16, 8, 8, 4, 8]
    limits = [agreement.expected(label, "F32", scores=False) for label in ("F16", "Q8_0", "Q6_K", "Q5_0", "Q4_0")]
    assert limits == sorted(limits, reverse=True)
    assert agreement.expected("Q4_0", "Q8_0", scores=False) == agreement.expected("Q8_0", "Q4_0", scores=False)


class FakeProcess:
    """A contender without a process. `turns` has the order in which all of them were timed."""

    turns: ClassVar[list[tuple[str, int]]] = []
    seconds: ClassVar[dict[str, float]] = {"Q8_0": 0.5, "Q4_0": 0.25}
    ends_at = None  # the number of turns after which `ends_with` is raised
    ends_with: BaseException = EngineError("its process was killed by signal 9")
    wrong = ""

    def __init__(self, contender: Contender) -> None:
        self.contender, self.load_s, self.peak = contender, 0.5, 100_000_000
        self.about, self.versions = {"device": "cpu"}, {"engine": "1"}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def results(self, some):
        vectors = np.random.default_rng(0).standard_normal((len(some), 16))
        return -vectors if self.contender.weights == self.wrong else vectors

    def timed(self, some, least):
        self.turns.append((self.contender.weights, len(some)))
        if self.ends_at is not None and len(self.turns) > self.ends_at:
            raise self.ends_with
        return [self.seconds[self.contender.weights]]


@pytest.fixture
def fake(monkeypatch):
    """Bench without processes."""
    kind = type("Fake", (FakeProcess,), {"turns": []})
    monkeypatch.setattr(measure, "Process", kind)
    return kind


def bench(**words):
    return measure.Bench(Request(str(made.gguf("nano")), weights=("Q8_0", "Q4_0")), count=8, **words)


def test_contenders_take_turns_and_ratios_are_to_the_first(fake):
    run = bench(rounds=2)
    steps = []
    run.run(steps.append)
    assert [name for name, _ in fake.turns[:4]] == ["Q8_0", "Q4_0", "Q8_0", "Q4_0"]
    assert len(steps) == run.steps
    first, second = run.report.rows
    assert first.rates["mix"] == [run._work.tokens / 0.5] * 2
    assert run.report.times(first, "mix") == 1
    assert run.report.times(second, "mix") == 2
    assert second.latency[8] == [0.25, 0.25]
    assert run.report.as_json()["results"][1]["times_the_first"]["mix"] == 2
    assert run.report.facts["versions"] == {"engine": "1"}


def test_other_vectors_are_no_result(fake):
    fake.wrong = "Q4_0"
    run = bench()
    run.run(lambda what: None)
    assert [row.name for row in run.report.rows] == ["llama Q8_0"]
    assert {name for name, _ in fake.turns} == {"Q8_0"}
    (said,) = run.report.refused.values()
    assert "gives other vectors: their cosine with those of llama Q8_0 is -1.0000" in said
    assert f"Not a result: {said}." in run.report.as_table()


def test_a_contender_that_dies_keeps_what_was_measured_and_the_others_go_on(fake):
    fake.ends_at = 1
    run = bench(rounds=1)
    run.run(lambda what: None)
    assert "ended at" in " ".join(run.report.refused.values())
    assert [bool(row.rates) for row in run.report.rows] == [True, False]
    json.dumps(run.report.as_json())
    assert run.report.as_table()


def test_ctrl_c_prints_what_was_measured(fake, capfdbinary):
    fake.ends_at, fake.ends_with = 3, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        main.main(["bench", "--model", str(made.gguf("nano")), "--weights", "Q8_0,Q4_0", "--texts", "8"])
    told = json.loads(capfdbinary.readouterr().out)
    assert told["interrupted"] is True
    assert set(told["results"][0]["per_s"]) == {"mix", "short"}
    assert set(told["results"][1]["per_s"]) == {"mix"}


def test_ctrl_c_before_the_first_number_prints_nothing(fake, capfdbinary):
    fake.ends_at, fake.ends_with = 0, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        main.main(["bench", "--model", str(made.gguf("nano")), "--weights", "Q8_0", "--texts", "8"])
    assert capfdbinary.readouterr().out == b""


def test_a_difference_is_exit_code_1(fake, capfdbinary):
    fake.wrong = "Q4_0"
    command = ["bench", "--model", str(made.gguf("nano")), "--weights", "Q8_0,Q4_0", "--texts", "8"]
    assert main.main(command) == console.SOME_FAILED
    assert len(capfdbinary.readouterr().out.splitlines()) == 1
    fake.wrong = ""
    assert main.main([*command, "--format", "table"]) == console.OK
    table = capfdbinary.readouterr().out.decode().splitlines()
    assert table[4].startswith("tokens per second")
    assert [line.split()[:2] for line in table[5:7]] == [["llama", "Q8_0"], ["llama", "Q4_0"]]
    assert len({len(line) for line in table[4:7]}) == 1


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--texts", "few"], ["--beside", "bert"], ["--checkpoint", "x"], ["--graph", "x"]]
)
def test_options_that_mean_nothing_are_refused(words):
    with pytest.raises(UsageError):
        main.main(["bench", "--model", "pico", *words])


# --- the processes


@pytest.mark.slow
@pytest.mark.llama
def test_a_whole_run_of_the_model_in_the_package(capfdbinary):
    command = ["bench", "--model", "pico", "--backend", "llama", "--texts", "4", "--rounds", "1", "--threads", "1"]
    assert main.main(command) == console.OK
    told = json.loads(capfdbinary.readouterr().out)
    (row,) = told["results"]
    assert (row["name"], row["device"], row["threads"], row["agreement"]) == ("llama Q8_0", "cpu", 1, 1.0)
    assert row["per_s"]["mix"] > 0
    assert {"8", "512"} <= set(row["latency_ms"])
    assert 20 < row["peak_mb"] < 2000
    assert 1 < row["file_mb"] < 20
    assert 0.05 < row["load_s"] < 60
    assert {"jina_local", "python", "llama-cpp-python"} <= set(told["versions"])
    assert "mlx" not in told["versions"]
    assert told["machine"]["cores"] >= 1


def contender(kind, **settings):
    return Contender("one", kind, settings, "F32", 0, False)


def test_a_contender_that_cannot_be_opened_says_why():
    settings = {"query": None, "name_or_path": "/nowhere", "backend": "llama", "weights": None, "task": None}
    with pytest.raises(EngineError, match=r"nowhere.*no such file"):
        process.Process(contender("jina_local", **settings))
    with pytest.raises(EngineError, match="KeyError: 'nobody'"):
        process.Process(contender("nobody"))


@pytest.mark.llama
def test_a_process_that_is_killed_is_an_error_and_not_a_hang():
    own = {"query": None, "name_or_path": "pico", "backend": "llama", "weights": None, "task": "retrieval"}
    with process.Process(contender("jina_local", **own)) as running:
        assert running.results(["a", "b"]).shape == (2, 256)
        assert len(running.timed(["a"], 0)) == 1
        running._child.kill()
        with pytest.raises(EngineError, match="killed by signal 9"):
            running.timed(["a"], 0)


# --- other programs, held against ours

SOME = ["the lighthouse", "a much longer text about the sea and the ships that pass on it at night", "", "waves"]


def same(opened, kind, form, query=None, **words):
    task = None if query is not None else {"v3": "retrieval.passage"}.get(kind, "retrieval")
    own = ours.open_model(query, name_or_path=form, task=task)
    return agreement.agreement(opened.run(SOME), own.run(SOME))


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["nano", "small"])
def test_llama_cpp_pythons_own_vectors_are_ours(kind):
    file = made.gguf_file(kind, "F16")
    opened = rivals.llama(str(file), "F16", "Document: ", 1)
    assert same(opened, kind, file) > 0.9999
    assert same(replace(opened, run=lambda some: opened.run(some[::-1])), kind, file) < 0.9


@pytest.mark.reference
@pytest.mark.llama
@pytest.mark.parametrize("kind", ["nano", "small", "reranker-v2", "reranker-v3"])
def test_transformers_results_are_ours(kind):
    ranks = kind.startswith("reranker")
    query = "ships at night" if ranks else None
    pooling = {"reranker-v2": "first", "reranker-v3": "marked"}.get(kind, "last")
    task, prefix = (None, "") if ranks else ("retrieval", "Document: ")
    opened = rivals.transformers(str(made.checkpoint(kind)), task, "float32", prefix, pooling, query, 1)
    form = made.reranker(kind, "F32") if ranks else made.gguf_file(kind, "F32")
    assert same(opened, kind, form, query) > 0.99999


@pytest.mark.reference
def test_a_checkpoint_that_transformers_has_no_class_for_is_refused():
    with pytest.raises(UsageError, match="jina-bert-v3 is not run beside"):
        rivals.torch_model(made.checkpoint("v3"), None)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.llama
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
@pytest.mark.parametrize("kind", ["nano", "small"])
def test_the_exported_graph_looks_at_its_mask(kind, tmp_path):
    """A graph without a mask has the right vectors for the longest text of a batch alone."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from tests.bench.exported import export

    checkpoint = made.checkpoint(kind)
    exact, int8 = export(checkpoint, "retrieval", tmp_path)
    for graph, least in ((exact, 0.99999), (int8, 0.99)):
        file = str(checkpoint / "tokenizer.json")
        opened = rivals.onnxruntime(str(graph), file, "Document: ", "last", 1)
        assert same(opened, kind, made.gguf_file(kind, "F32")) > least


# --- the processor


def test_the_processor_is_named_with_what_it_multiplies(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    x86 = {"model name": "AMD EPYC 9B14", "flags": "fpu avx2 avx512f avx512_vnni avx512_bf16"}
    arm = {"CPU implementer": "0x41", "CPU part": "0xd40", "Features": "fp asimd asimddp i8mm bf16 sve"}
    for told, name, multiplies in (
        (x86, "AMD EPYC 9B14", ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16")),
        (arm, "aarch64, CPU implementer 0x41, CPU part 0xd40", ("NEON dotprod", "NEON i8mm", "NEON BF16", "SVE")),
        ({}, "aarch64", ()),
    ):
        monkeypatch.setattr(cpu, "_cpuinfo", lambda told=told: told)
        assert (cpu.name(), cpu.multiplies()) == (name, multiplies)
    monkeypatch.setattr(cpu.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cpu, "system_text", lambda key: "Apple M3 Ultra")
    monkeypatch.setattr(cpu, "system_number", lambda key: int(key in ("hw.optional.arm.FEAT_I8MM", "hw.x")))
    assert (cpu.name(), cpu.multiplies()) == ("Apple M3 Ultra", ("NEON i8mm",))


def test_this_machines_processor_has_a_name():
    assert cpu.name()

"""The training code of pico: what it exports is the model that it trained, and the static start is put in whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jina_local import load

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.mlx]

TEXTS = ["A rocket leaves the ground.", "Mars is called the Red Planet", "naïve café, 北京", "x"]


@pytest.fixture(scope="module")
def trained():
    """A student with random weights and adapters, at test size, with a vocabulary trained on a few lines."""
    from convert.pico import vocabulary
    from convert.pico.settings import Settings, Shape
    from convert.pico.student import Student

    tokenizer = vocabulary.train([*TEXTS, "Document: Query: the quick brown fox"] * 3, 320)
    size = tokenizer.get_vocab_size()
    shape = Shape(vocab=size, hidden=128, heads=2, intermediate=96, dims=(32, 128))
    settings = replace(Settings(), shape=shape, rank=4)
    torch.manual_seed(0)
    return Student(settings.shape), tokenizer, settings


def vectors(student, tokenizer, settings, *, query):
    from convert.pico.batches import Reader

    ids = Reader(tokenizer, settings).ids(TEXTS, query=query, longest=100)
    with torch.inference_mode():
        return torch.nn.functional.normalize(student(ids), dim=1).numpy()


def test_an_exported_student_gives_the_vectors_that_it_was_trained_to_give(trained, tmp_path):
    from convert.pico import export

    student, tokenizer, settings = trained
    for parameter in student.parameters():
        parameter.data = parameter.data.half().float()  # what the file can hold
    base = {name: data.clone() for name, data in student.state_dict().items()}
    adapters, expected = {}, {}
    for number, task in enumerate(export.TASKS):
        torch.manual_seed(number)
        student.adapt(settings.rank)
        for _, linear in student.linears():
            linear.lora_B.data.normal_(0, 0.2)
        factors = {n: p.data.half().float() for n, p in student.named_parameters() if "lora_" in n}
        student.load_state_dict(factors, strict=False)
        adapters[task] = factors
        expected[task] = [vectors(student, tokenizer, settings, query=query) for query in (False, True)]
    student.load_state_dict(base, strict=False)
    export.write(tmp_path / "out", student, adapters, tokenizer, settings)
    with load(tmp_path / "out", backend="mlx") as model:
        for task in export.TASKS:
            for query, wanted in enumerate(expected[task]):
                got = model.encode(TEXTS, task=task, prompt_name=("document", "query")[query])
                assert np.abs(got - wanted).max() < 2e-5, (task, query)
    assert np.abs(expected["retrieval"][0] - expected["clustering"][0]).max() > 0.05


def test_the_student_begins_as_the_static_model(trained):
    from convert.pico import static
    from convert.pico.batches import Reader
    from convert.pico.student import Student

    _, tokenizer, settings = trained
    torch.manual_seed(1)
    mean = static.Mean(torch.randn(settings.shape.vocab, settings.shape.hidden - 1))
    mean.weights.data.normal_()
    student = Student(settings.shape)
    quiet = {i for prompt in settings.prompts for i in tokenizer.encode(prompt).ids}
    static.put(mean, student, sorted(quiet), tokenizer.token_to_id("<|end_of_text|>"))
    got = torch.from_numpy(vectors(student, tokenizer, settings, query=False))[:, :-1]
    for row, ids in zip(got, Reader(tokenizer, settings).plain(TEXTS), strict=True):
        wanted = mean(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]
        if not {*ids} & quiet and len(ids) > 3:
            assert torch.nn.functional.cosine_similarity(row, wanted, dim=0) > 0.97

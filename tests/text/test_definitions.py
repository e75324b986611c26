"""Definitions of every language that is parsed: their spans and qualified names, and source that does not parse."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

pytest.importorskip("tree_sitter")

from jina_local.text import definitions
from jina_local.text.definitions import passages

SOURCES = {
    "python": (
        "@dec\ndef f(): pass\n# c\nclass A:\n  x = 1\n  @p\n  def m(self): pass\nK = 3\ntype T = int\n",
        ["f", "A", "A.m", "K", "T"],
    ),
    "javascript": (
        "export const K=3;\nexport default class A extends B { m(){} h = () => 1; }\nfunction f(){}\n"
        "const g = () => {};\nmodule.exports = { a: function(){} };\n",
        ["K", "A", "A.m", "A.h", "f", "g", "a"],
    ),
    "typescript": (
        "export interface I { a: number }\nexport type T = string;\nenum E {A}\n"
        "abstract class C<T> { private m(): void {} }\nnamespace N { export function f() {} }\n"
        "@Dec()\nexport class D {}\n",
        ["I", "T", "E", "C", "C.m", "N", "N.f", "D"],
    ),
    "tsx": (
        "export const App: FC = () => <div/>;\nexport default function Page() { return <a/>; }\n",
        ["App", "Page"],
    ),
    "go": (
        "package x\nconst (\n A = 1\n B = 2\n)\nvar V int\nvar (\n W int\n)\ntype R struct { a int }\n"
        "func (r *R) M() {}\nfunc (s *Stack[T]) P(x T) {}\nfunc F() {}\n",
        ["A", "B", "V", "W", "R", "R.M", "Stack.P", "F"],
    ),
    "rust": (
        "#[derive(Debug)]\npub struct S<T> { a: T }\nimpl<T> S<T> { pub fn new() -> Self {} }\n"
        "trait T { fn t(&self); }\nmod m { fn g(){} }\nmacro_rules! mm { () => {} }\nconst C: i32 = 1;\n",
        ["S", "S.new", "T", "T.t", "m", "m.g", "mm", "C"],
    ),
    "java": (
        "package a;\npublic class A { int x; public A() {} @Override\n public String m() { return \"\"; } "
        "enum E { X } record R(int a) {} }\ninterface I { void q(); }\n",
        ["A", "A.A", "A.m", "A.E", "A.R", "I", "I.q"],
    ),
    "c": (
        "#define M 1\n#define F(x) x\nstruct s { int a; };\ntypedef struct { int b; } t;\n"
        "static int f(int a) { return 0; }\nchar *g(void) { return 0; }\nchar **h(void) { return 0; }\n"
        "enum e { A };\n",
        ["M", "F", "s", "t", "f", "g", "h", "e"],
    ),
    "cpp": (
        "namespace n { template <class T>\nclass A { public: void m() {} ~A() {} T& get() {} };\nvoid A::q() {}\n"
        "using X = int; struct P { int a; }; }\n",
        ["n.A", "n.A.m", "n.A.~A", "n.A.get", "n.A.q", "n.X", "n.P"],
    ),
    "csharp": (
        "namespace N { [Attr]\npublic class A { public int P { get; set; } public A() {} void M<T>() {} } "
        "interface I {} record R(int a); enum E {X} struct S {} }\n",
        ["N.A", "N.A.P", "N.A.A", "N.A.M", "N.I", "N.R", "N.E", "N.S"],
    ),
    "ruby": (
        "module M\n class A < B\n  def m; end\n  def self.c; end\n end\nend\nK = 1\nclass X::Y; end\n",
        ["M", "M.A", "M.A.m", "M.A.c", "K", "X.Y"],
    ),
    "php": (
        "<?php\nnamespace N;\nclass A { public function m() {} }\ninterface I {}\ntrait T {}\nfunction f() {}\n"
        "enum E {}\n",
        ["A", "A.m", "I", "T", "f", "E"],
    ),
    "swift": (
        "struct S { func f() {} }\nclass C {}\nenum E { case a }\nprotocol P {}\nextension S { func g() {} }\n"
        "func top() {}\nactor Z {}\n",
        ["S", "S.f", "C", "E", "P", "S.g", "top", "Z"],
    ),
    "kotlin": (
        "class A {\n fun m() {}\n companion object {\n  fun z() {}\n }\n}\nobject O {}\nfun top() {}\ninterface I\n"
        "fun String.ext() {}\n",
        ["A", "A.m", "A.z", "O", "top", "I", "ext"],
    ),
    "shell": ("f() { echo; }\nfunction g { echo; }\n", ["f", "g"]),
}  # fmt: skip


def test_every_language_is_tried():
    assert set(SOURCES) == definitions.PARSED


@pytest.mark.parametrize("language", sorted(SOURCES))
def test_names_are_qualified(language):
    source, names = SOURCES[language]
    (whole,) = passages(source, language, 1000)
    assert list(dict.fromkeys(whole.defines)) == names
    assert (whole.start, whole.end) == (0, len(source))


@pytest.mark.parametrize("language", sorted(SOURCES))
@pytest.mark.parametrize("size", [10, 60, 200])
def test_passages_follow_each_other_and_are_the_whole_text(language, size):
    source, names = SOURCES[language]
    comment = "# é日😀\n" if language in ("python", "ruby", "shell") else "// é日😀\n"
    for text in (source, comment + source if language != "php" else source, source.replace("\n", "\r\n")):
        found = passages(text, language, size)
        assert "".join(text[one.start : one.end] for one in found) == text
        assert {name for one in found for name in one.defines} == set(names)


def test_a_definition_has_the_comments_and_attributes_above_it():
    text = "import os\n\n# about f\n# more\n@d\ndef f():\n    return 1\n\nx()\n\ndef g(): return 2\n"
    found = [(one.context, text[one.start : one.end].strip()) for one in passages(text, "python", 20)]
    assert found == [
        ("", "import os"),
        ("f", "# about f\n# more\n@d\ndef f():\n    return 1"),
        ("", "x()"),
        ("g", "def g(): return 2"),
    ]


def test_neighbours_share_a_passage_under_the_name_of_their_owner():
    text = "class A:\n    def f(self): return 1\n\n    def g(self): return 2\n\n    def h(self): return 3\n"
    found = [(one.context, one.defines) for one in passages(text, "python", 60)]
    assert found == [("A", ("A", "A.f")), ("A", ("A.g", "A.h"))]


def test_a_closing_brace_is_no_passage():
    text = "class A {\n" + "".join(f"  m{n}() {{ return {n} }}\n" for n in range(9)) + "}\n"
    assert text[passages(text, "javascript", 22)[-1].start :].strip() == "m8() { return 8 }\n}"


def test_places_count_characters_if_the_source_is_not_ascii():
    text = "# é日😀\ndef f(): return '😀'\n\ndef ñ(): pass\n"
    assert [(text[one.start : one.end], one.defines) for one in passages(text, "python", 30)] == [
        ("# é日😀\ndef f(): return '😀'", ("f",)),
        ("\n\ndef ñ(): pass\n", ("ñ",)),
    ]


@pytest.mark.sampled
@pytest.mark.parametrize(
    "text",
    ["[" * 60_000, '"' * 60_000, "function f(){" * 5_000, "x = 1\n" * 100_000, "(" * 20_000 + "def f(): pass"],
    ids=["brackets", "quotes", "nested", "long", "unclosed"],
)
@pytest.mark.parametrize("language", ["python", "javascript", "rust"])
def test_source_that_does_not_parse_takes_a_bounded_time(text, language):
    start = time.process_time()
    found = passages(text, language, 750)
    assert time.process_time() - start < 8
    assert "".join(text[one.start : one.end] for one in found) == text


def test_no_grammar_is_fetched_at_run_time():
    """Every grammar is a compiled module that is here; a socket would fail."""
    script = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('a socket')\n"
        "socket.socket = refuse\n"
        "from jina_local.text.definitions import PARSED, passages\n"
        "for language in PARSED: passages('x', language, 10)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_grammar_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_ruby", None)
    definitions._grammar.cache_clear()
    with pytest.raises(definitions.EngineMissing, match=r"tree_sitter_ruby: pip install 'jina_local\[search\]'"):
        passages("x", "ruby", 10)

"""Source code -> spans of its functions, classes and constants with their qualified names, through tree-sitter.

Every grammar is a package of its own that carries compiled tables; none is fetched at run time.
"""

from __future__ import annotations

import importlib
import re
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..errors import EngineMissing

MOST_PARSED = 1 << 19  # characters: longer source is generated as a rule, and is cut at lines alone
# A query's time grows with the square of the children of a node that does not parse. Source with such nodes is cut at
# lines alone.
_MOST_UNPARSED = 3_000
_SECONDS = 2.0  # of a processor, before source that does not parse is given up
_DEEPEST = 150  # nodes around a definition; deeper ones are part of those around them
_READ = 1 << 16  # bytes that the parser is handed at a time
_MOST_NAME = 80

_C_FUNCTIONS = """
(function_definition declarator: (function_declarator declarator: (_) @name)) @def
(function_definition declarator: (pointer_declarator declarator: (function_declarator declarator: (_) @name))) @def
(function_definition declarator: (pointer_declarator declarator: (pointer_declarator declarator:
    (function_declarator declarator: (_) @name)))) @def
(struct_specifier name: (type_identifier) @name body: (_)) @def
(union_specifier name: (type_identifier) @name body: (_)) @def
(enum_specifier name: (type_identifier) @name body: (_)) @def
(type_definition declarator: (type_identifier) @name) @def
(preproc_def name: (identifier) @name) @def
(preproc_function_def name: (identifier) @name) @def
"""
_JAVASCRIPT = """
(variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression) (class)]) @def
(pair key: (property_identifier) @name value: [(arrow_function) (function_expression)]) @def
(program [(lexical_declaration (variable_declarator name: (identifier) @name))
          (variable_declaration (variable_declarator name: (identifier) @name))] @def)
(program (export_statement (lexical_declaration (variable_declarator name: (identifier) @name))) @def)
"""
_TYPESCRIPT = (
    "class_declaration abstract_class_declaration function_declaration generator_function_declaration "
    "method_definition interface_declaration type_alias_declaration enum_declaration internal_module module"
)


@dataclass(frozen=True)
class _Language:
    """package: of the grammar. nodes: kinds whose field `name` is their name. patterns: of other definitions.

    A pattern captures @def and @name, and @owner if the name of the owner is written there; @scope instead of @name
    names a node's children and defines nothing.
    """

    package: str
    nodes: str
    patterns: str = ""
    function: str = "language"


_LANGUAGES = {
    "python": _Language(
        "tree_sitter_python",
        "class_definition function_definition",
        """
        (type_alias_statement left: (_) @name) @def
        (module (expression_statement (assignment left: (identifier) @name)) @def)
        """,
    ),
    "javascript": _Language(
        "tree_sitter_javascript",
        "class_declaration function_declaration generator_function_declaration method_definition",
        _JAVASCRIPT + "(field_definition property: (_) @name value: (arrow_function)) @def",
    ),
    "typescript": _Language("tree_sitter_typescript", _TYPESCRIPT, _JAVASCRIPT, "language_typescript"),
    "tsx": _Language("tree_sitter_typescript", _TYPESCRIPT, _JAVASCRIPT, "language_tsx"),
    "go": _Language(
        "tree_sitter_go",
        "function_declaration",
        """
        (method_declaration receiver: (parameter_list (parameter_declaration type: (_) @owner)) name: (_) @name) @def
        (type_declaration [(type_spec name: (_) @name) (type_alias name: (_) @name)]) @def
        (source_file (const_declaration (const_spec name: (_) @name)) @def)
        (source_file (var_declaration [(var_spec name: (_) @name)
                                       (var_spec_list (var_spec name: (_) @name))]) @def)
        """,
    ),
    "rust": _Language(
        "tree_sitter_rust",
        "function_item function_signature_item struct_item enum_item union_item trait_item mod_item type_item "
        "const_item static_item macro_definition",
        "(impl_item type: (_) @scope) @def",
    ),
    "java": _Language(
        "tree_sitter_java",
        "class_declaration interface_declaration enum_declaration record_declaration annotation_type_declaration "
        "method_declaration constructor_declaration compact_constructor_declaration",
    ),
    "c": _Language("tree_sitter_c", "", _C_FUNCTIONS),
    "cpp": _Language(
        "tree_sitter_cpp",
        "concept_definition alias_declaration",
        _C_FUNCTIONS
        + """
        (function_definition declarator: (reference_declarator (function_declarator declarator: (_) @name))) @def
        (class_specifier name: (_) @name body: (_)) @def
        (namespace_definition name: (_) @scope) @def
        """,
    ),
    "csharp": _Language(
        "tree_sitter_c_sharp",
        "class_declaration struct_declaration interface_declaration enum_declaration record_declaration "
        "delegate_declaration method_declaration constructor_declaration property_declaration",
        "(namespace_declaration name: (_) @scope) @def",
    ),
    "ruby": _Language(
        "tree_sitter_ruby",
        "class module method singleton_method",
        "(program (assignment left: (constant) @name) @def)",
    ),
    "php": _Language(
        "tree_sitter_php",
        "class_declaration interface_declaration trait_declaration enum_declaration function_definition "
        "method_declaration",
        "",
        "language_php",
    ),
    "swift": _Language(
        "tree_sitter_swift", "class_declaration protocol_declaration function_declaration typealias_declaration"
    ),
    "kotlin": _Language("tree_sitter_kotlin", "class_declaration object_declaration function_declaration"),
    "shell": _Language("tree_sitter_bash", "function_definition"),
}
PARSED = frozenset(_LANGUAGES)
GRAMMARS = frozenset(one.package for one in _LANGUAGES.values())  # packages that are imported by name
# Nodes around a definition that belong to it: decorators, `export`, `template <...>`.
_WRAPPERS = frozenset({
    "decorated_definition", "export_statement", "template_declaration", "lexical_declaration", "variable_declaration",
})  # fmt: skip
_ABOVE = re.compile(r"[ \t]*(?:#|//|/\*|\*|--|@|\[)")  # a line that speaks of the next: a comment, an attribute
_WORD = re.compile(r"\w")


@dataclass
class Definition:
    """A definition with those inside it. The module itself has no name."""

    start: int  # characters
    end: int
    name: str = ""  # qualified
    defines: tuple[str, ...] = ()
    children: list[Definition] = field(default_factory=list)


@dataclass(frozen=True)
class Passage:
    """A part of a source file: the qualified name of its innermost owner, and the names defined in it."""

    start: int
    end: int
    context: str
    defines: tuple[str, ...]


def passages(text: str, language: str, size: int) -> list[Passage]:
    """Passages that follow each other and together are the whole text.

    Neighbours share a passage of at most `size` characters. A definition is longer only if none lies inside it.
    """
    parts: list[Passage] = []
    start = 0
    for part in _parts(text, _tree(text, language), size):
        end = _safe(text, part.end)
        if start < end:
            parts.append(replace(part, start=start, end=end, defines=tuple(dict.fromkeys(part.defines))))
        elif parts:
            parts[-1] = replace(parts[-1], defines=parts[-1].defines + part.defines)
        start = max(start, end)
    return parts


def _safe(text: str, place: int) -> int:
    """This place, or the next start of a line if a grapheme might be cut here."""
    around = text[place - 1 : place + 1]
    if around.startswith("\n") or (around.isascii() and around != "\r\n"):
        return place
    return text.find("\n", place) + 1 or len(text)


def _tree(text: str, language: str) -> Definition:
    """The module with its definitions; without any if the text is too long or too hostile to be parsed."""
    module = Definition(0, len(text))
    if len(text) > MOST_PARSED:
        return module
    data = text.encode()
    found = _captured(data, language)
    at = _characters(data, text, [edge for start, end, _, _ in found for edge in (start, end)])
    open_: list[Definition] = [module]
    for start, end, names, defines in found:
        while open_[-1].end < at[end]:
            open_.pop()
        owner = open_[-1]
        before = owner.children[-1].end if owner.children else owner.start
        qualified = tuple(f"{owner.name}.{name}" if owner.name else name for name in names)
        one = Definition(_first_line(text, at[start], before), at[end], qualified[0], qualified if defines else ())
        owner.children.append(one)
        open_.append(one)
    return module


def _captured(data: bytes, language: str) -> list[tuple[int, int, tuple[str, ...], bool]]:
    """(start, end, names, whether it defines them) of each definition, in bytes; outer ones first."""
    grammar, query = _grammar(language)
    from tree_sitter import Parser, QueryCursor

    end = time.thread_time() + _SECONDS
    try:
        tree = Parser(grammar).parse(
            lambda place, _: data[place : place + _READ],
            progress_callback=lambda place, error: time.thread_time() > end,
        )
    except ValueError:  # the callback has ended it
        return []
    if _unparsed(tree.root_node) > _MOST_UNPARSED:
        return []
    cursor = QueryCursor(query)
    cursor.set_max_start_depth(_DEEPEST)
    found: dict[tuple[int, int], tuple[tuple[str, ...], bool]] = {}
    for _, captures in cursor.matches(tree.root_node):
        node = captures["def"][0]
        while (parent := node.parent) is not None and parent.type in _WRAPPERS:
            node = parent
        names = tuple(_name(one.text or b"") for one in captures.get("name", captures.get("scope", [])))
        if "owner" in captures:
            names = tuple(f"{_name(captures['owner'][0].text or b'')}.{name}" for name in names)
        known, _ = found.get((node.start_byte, node.end_byte), ((), True))
        found[node.start_byte, node.end_byte] = tuple(dict.fromkeys(known + names)), "name" in captures
    return [(start, end, *found[start, end]) for start, end in sorted(found, key=lambda span: (span[0], -span[1]))]


def _unparsed(root: Any) -> int:
    """The most children of a node that does not parse."""
    most, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        if node.has_error:
            most = max(most, node.child_count if node.is_error else 0)
            waiting += node.children
    return most


def _name(raw: bytes) -> str:
    """A name as it is asked for: `Stack::push` and `*Stack[T]` become "Stack.push" and "Stack"."""
    name = re.sub(r"<[^<>]*>|\[.*\]|[*&\s]", "", raw[: 4 * _MOST_NAME].decode(errors="replace"), flags=re.S)
    return name.replace("::", ".")[:_MOST_NAME]


def _characters(data: bytes, text: str, edges: list[int]) -> dict[int, int]:
    """Places in UTF-8 -> places in the text."""
    if len(data) == len(text):
        return dict(zip(edges, edges, strict=True))
    places, before, count = {}, 0, 0
    for edge in sorted(set(edges)):
        count += len(data[before:edge].decode())
        places[edge], before = count, edge
    return places


def _first_line(text: str, start: int, least: int) -> int:
    """Where a definition's own lines begin: with the comments and attributes right above it."""
    line = text.rfind("\n", 0, start) + 1
    if line < least or text[line:start].strip():
        return start
    while line > least:
        above = text.rfind("\n", 0, line - 1) + 1
        if above < least or not _ABOVE.match(text, above, line):
            break
        line = above
    return line


def _parts(text: str, owner: Definition, size: int) -> list[Passage]:
    """The text of a definition: those inside it, each whole if it fits, and the text between them."""
    parts: list[Passage] = []
    joins = False  # whether the last part belongs to `owner` itself, so that a neighbour may join it

    def add(start: int, end: int, context: str, defines: tuple[str, ...]) -> None:
        nonlocal joins
        if parts and not _WORD.search(text, start, end):  # a closing brace, white space
            parts[-1] = replace(parts[-1], end=end)
        elif joins and end - parts[-1].start <= size:
            last = parts[-1]
            both = context if context == last.context else owner.name
            parts[-1] = Passage(last.start, end, both, last.defines + defines)
        else:
            parts.append(Passage(start, end, context, defines))
            joins = True

    at, own = owner.start, owner.defines
    for child in owner.children:
        if _WORD.search(text, at, child.start):
            add(at, child.start, owner.name, own)
            at, own = child.start, ()
        if child.children and child.end - at > size:
            inner = _parts(text, child, size)
            parts += [replace(inner[0], start=at, defines=own + inner[0].defines), *inner[1:]]
            joins = False
        else:
            add(at, child.end, child.name, own + _all_defined(child))
        at, own = child.end, ()
    add(at, owner.end, owner.name, own)
    return parts


def _all_defined(definition: Definition) -> tuple[str, ...]:
    inside = [name for child in definition.children for name in _all_defined(child)]
    return tuple(dict.fromkeys([*definition.defines, *inside]))


@lru_cache
def _grammar(language: str) -> tuple[Any, Any]:
    """(grammar, query of its definitions). Both may be shared between threads."""
    wanted = _LANGUAGES[language]
    try:
        from tree_sitter import Language, Query

        package = importlib.import_module(wanted.package)
    except ImportError as error:
        raise EngineMissing(
            f"splitting {language} needs {error.name or wanted.package}: pip install 'jina_local[search]'."
        ) from error
    grammar = Language(getattr(package, wanted.function)())
    nodes = "".join(f"({node} name: (_) @name) @def\n" for node in wanted.nodes.split())
    return grammar, Query(grammar, nodes + wanted.patterns)

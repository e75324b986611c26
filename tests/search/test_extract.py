"""Text out of files: encodings, refusals, HTML, PDF, DOCX, notebooks, and the places that passages come from."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import sys
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_local.search import docx_text, html_text, pdf_text
from jina_local.search.documents import Document, NotText, Place, places
from jina_local.search.extract import LANGUAGES, extract, language_named, language_of, most_bytes


@pytest.mark.parametrize(
    ("data", "text", "encoding", "mark"),
    [
        (b"", "", "utf-8", 0),
        ("é\r\n日".encode(), "é\r\n日", "utf-8", 0),
        (codecs.BOM_UTF8 + "é".encode(), "é", "utf-8", 3),
        (codecs.BOM_UTF16_LE + "é😀".encode("utf-16-le"), "é😀", "utf-16-le", 2),
        (codecs.BOM_UTF16_BE + "é".encode("utf-16-be"), "é", "utf-16-be", 2),
        (b"a" * 8192 + b"\0", "a" * 8192 + "\0", "utf-8", 0),
    ],
)
def test_text_in_an_encoding_that_is_read(data, text, encoding, mark):
    assert extract(b"/a/b.txt", data) == Document(text, "text", None, "line", encoding, mark)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", "binary"),
        (b"a" * 8191 + b"\0", "binary"),
        (bytes(range(128, 256)) * 10, "binary"),
        (b"\x89PNG\r\n\x1a\n\0", "binary"),
        ("Grüße aus München".encode("latin-1"), "not UTF-8 (at byte 2): save it as UTF-8"),
        (codecs.BOM_UTF8 + b"ab\xff cdef gh", "not UTF-8 (at byte 5): save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"abcdefgh" + b"\x00\xd8", "not UTF-16 (at byte 10): save it as UTF-8"),
        (codecs.BOM_UTF32_LE + "a".encode("utf-32-le"), "encoded in UTF-32"),
        ("\ud800".encode("utf-8", "surrogatepass") + b" long enough", "not UTF-8 (at byte 0): save it as UTF-8"),
    ],
)
def test_what_is_no_text_says_why(data, reason):
    with pytest.raises(NotText) as refused:
        extract(b"a.txt", data)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("path", "language"),
    [
        (b"/a/B.PY", "python"),
        (b"x.d/README.md", "markdown"),
        (b"\xff.rs", "rust"),
        (b"Makefile", None),
        (b".py", None),
        (b"a.h", "cpp"),
    ],
)
def test_the_language_is_told_by_the_name(path, language):
    assert language_of(path) == language


def test_a_language_is_found_by_its_name_or_suffix():
    assert [language_named(name) for name in ("py", ".py", "Python", "python", "c", "sh", "cobol")] == [
        "python", "python", "python", "python", "c", "shell", None,
    ]  # fmt: skip
    suffixes = [suffix for some in LANGUAGES.values() for suffix in some]
    assert len(suffixes) == len(set(suffixes))


def test_documents_with_pictures_may_be_larger():
    assert most_bytes(b"a.pdf") == most_bytes(b"a.DOCX") > most_bytes(b"a.txt") == most_bytes(b"a")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_places_are_exact_in_every_encoding(encoding):
    text = "é one\n日本 two\r\n😀\n\nlast"
    data = text.encode(encoding)
    document = extract(b"a.txt", data)
    spans = [(0, 5), (6, 8), (9, 12), (14, 15), (17, 21)]
    for (start, end), place in zip(spans, places(document, spans), strict=True):
        part = data[place.start_byte : place.end_byte].decode(document.encoding)
        assert part == text[start:end]
        assert place.start_line == place.end_line == text.count("\n", 0, start) + 1
    assert places(document, [(2, 20)])[0].end_line == 5
    assert places(document, [(0, 6), (6, 21)])[0].end_line == 1  # a line's end belongs to the line


PAGE = """<!DOCTYPE html><html><head><title>A &amp; B</title><style>p { content: "<b>" }</style></head>
<body><h1>Guide
  to it</h1><p>Hello <b>wor</b>ld,
this  is <a href='x' title=">">a line</a></p><script>if (a<b) document.write("</p>")</script>
<ul><li>one<li>two</ul><table><tr><th>x<th>y<tr><td>1</td><td>2</td></tr></table>
<pre>def f():
    return 1

# no heading
</pre><!-- <p>hidden</p> --><svg><text>icon</text></svg>1 &lt; 2 < 3<br>&#x65E5;&nbsp;end
"""


def test_html_gives_its_visible_text_with_the_lines_of_the_source():
    document = extract(b"a.html", PAGE.encode())
    lines = zip(document.text.split("\n"), document.lines, strict=True)
    assert [one for one in lines if one[0]] == [
        ("# A & B", 1), ("# Guide to it", 2), ("Hello world,", 3), ("this is a line", 4), ("- one", 5), ("- two", 5),
        ("x | y", 5), ("1 | 2", 5), ("```", 6), ("def f():", 6), ("    return 1", 7), ("# no heading", 9),
        ("```", 10), ("1 < 2 < 3", 10), ("日 end", 10),
    ]  # fmt: skip
    assert "    return 1\n\n# no heading" in document.text
    at = document.text.index("this is")
    assert places(document, [(at, at + 4)]) == [Place(4, 4, None, None)]


@pytest.mark.parametrize(
    "part",
    [
        "<",
        "<!",
        "<!--",
        "<a ",
        '<a b="',
        "<a b='",
        "</",
        "</a",
        "&",
        "&#",
        "&#9",
        "<![",
        "<?",
        "<script>",
        "<script",
        "<svg>",
        "<pre>",
        "<td>x",
        "\n",
        "<p>",
        "<title>",
        "<a =  ",
        "</svg>",
    ],
)
def test_html_takes_linear_time(part):
    source = part * (400_000 // len(part))
    start = time.process_time()
    html_text.text_of(source)
    assert time.process_time() - start < 4


@given(st.text(st.sampled_from("<>/!-&#;'\"= \nabpretdscript x"), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_html_gives_a_line_of_the_source_for_each_line(source):
    text, lines = html_text.text_of(source)
    assert len(lines) == (len(text.split("\n")) if text else 0)
    assert lines == sorted(lines)
    assert all(1 <= line <= source.count("\n") + 1 for line in lines)


def test_a_number_that_is_no_character_is_replaced():
    assert html_text.text_of("a&#" + "9" * 5000 + ";b &#xD800;")[0] == "a\ufffdb \ufffd"


def notebook(*cells: tuple[str, object], **metadata: object) -> bytes:
    body = {
        "cells": [{"cell_type": kind, "source": source, "outputs": ["x"]} for kind, source in cells],
        "metadata": metadata,
    }
    return json.dumps(body).encode()


def test_a_notebook_gives_its_cells():
    data = notebook(
        ("markdown", ["# T\n", "text"]), ("code", ""), ("code", "a = 1\nb"), language_info={"name": "python"}
    )
    document = extract(b"a.ipynb", data)
    assert document.text == "# T\ntext\n\n```python\na = 1\nb\n```"
    assert (document.unit, document.lines) == ("cell", [1, 1, 3, 3, 3, 3, 3])
    assert extract(b"a.ipynb", notebook(("markdown", "\ud800"))).text == "?"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"cells": 1}',
        b'{"cells": [1]}',
        b'{"cells": [{"cell_type": "code", "source": 1}]}',
        b"[" * 100_000,
        b'{"cells": [], "metadata": 1}',
    ],
)
def test_what_is_no_notebook_is_refused(data):
    with pytest.raises(NotText, match="a notebook that is not of version 4"):
        extract(b"a.ipynb", data)


NAMESPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx(body: str, styles: str = "", **parts: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", f"<w:document {NAMESPACE}><w:body>{body}</w:body></w:document>")
        if styles:
            archive.writestr("word/styles.xml", f"<w:styles {NAMESPACE}>{styles}</w:styles>")
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_docx_gives_headings_lists_and_tables():
    styles = '<w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>'
    cells = "".join(
        f"<w:tr><w:tc>{paragraph(a)}</w:tc><w:tc>{paragraph(b)}{paragraph('more')}</w:tc></w:tr>"
        for a, b in ("ab", "cd")
    )
    body = (
        paragraph("Über uns", '<w:pStyle w:val="berschrift2"/>')
        + paragraph("Text &amp; so")
        + paragraph(" ")
        + paragraph("item", "<w:numPr/>")
        + f"<w:tbl>{cells}</w:tbl>"
        + "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:instrText>PAGE</w:instrText></w:r></w:p>"
    )
    document = extract(b"a.docx", docx(body, styles))
    assert document.text == "## Über uns\n\nText & so\n\n- item\n\na | b more\nc | d more\n\na b"
    assert (document.unit, document.lines) == ("paragraph", [1, 2, 2, 4, 4, 7, 7, 10, 11, 11])


def test_docx_as_word_writes_it():
    library = pytest.importorskip("docx")
    made = library.Document()
    made.add_heading("Title", 0)
    made.add_heading("Part", 1)
    made.add_paragraph("Words here.")
    out = io.BytesIO()
    made.save(out)
    assert extract(b"a.docx", out.getvalue()).text == "# Title\n\n# Part\n\nWords here."


def test_hostile_docx_files_are_refused_in_bounded_memory():
    def refused(data: bytes) -> str:
        with pytest.raises(NotText) as error:
            extract(b"a.docx", data)
        return str(error.value)

    bomb = docx("<w:p>" * 100 + "</w:p>" * 100 + " " * docx_text.MOST_XML)
    assert len(bomb) < 1 << 20
    assert refused(bomb) == "word/document.xml is larger than 64 MiB unpacked"
    with pytest.raises(NotText, match="a DOCX with too much text"):
        docx_text.text_of(docx(paragraph("0123456789")), 9)
    entities = "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><x>&b;</x>"
    assert refused(docx("", **{"word/styles.xml": entities})) == "a DOCX whose XML declares a document type"
    assert refused(docx("<w:p>")).startswith("damaged DOCX (mismatched tag")
    assert refused(docx(paragraph("x"))[:-30]).startswith("damaged DOCX (")
    assert refused(b"PK\3\4").startswith("damaged DOCX (")
    assert refused(b"") == "damaged DOCX (File is not a zip file)"
    other = io.BytesIO()
    zipfile.ZipFile(other, "w").close()
    assert refused(other.getvalue()) == "a zip file that is no DOCX"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_docx_is_refused_or_read(data):
    raw = bytearray(docx(paragraph("Some words. " * 20)))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=5)):
        raw[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotText):
        assert extract(b"a.docx", bytes(raw)).unit == "paragraph"


def pdf(*pages: str) -> bytes:
    """A PDF of one line a page, written by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for page in pages:
        stream = f"BT /F1 12 Tf 20 100 Td ({page}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents {len(objects) + 2} 0 R "
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(f"{at:010} 00000 n \n" for at in places)
    return (out + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n").encode()


def test_a_pdf_gives_its_pages():
    pytest.importorskip("pypdf")
    document = extract(b"whatever.bin", pdf("First page", "", "Third page"))
    assert document == Document("First page\n\nThird page", "pdf", [1, 3, 3], "page")


def test_a_pdf_that_gives_no_text_says_why(monkeypatch):
    pytest.importorskip("pypdf")
    with pytest.raises(NotText, match="a PDF without text: its pages may be pictures"):
        extract(b"a.pdf", pdf(""))
    with pytest.raises(NotText, match=r"a damaged PDF \(\w+\)"):
        extract(b"a.pdf", b"%PDF-1.4\nnonsense")
    with pytest.raises(NotText, match="a PDF with too much text"):
        pdf_text.text_of(pdf("0123456789"), 5)
    monkeypatch.setattr(pdf_text, "SECONDS", 0.01)
    with pytest.raises(NotText, match=r"a PDF that took more than 0\.01 seconds"):
        extract(b"a.pdf", pdf("x"))


def test_pdf_without_its_library_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "pypdf.py").write_text("raise ImportError('not here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(NotText, match=r"PDF files need pypdf: pip install 'jina_local\[search\]'"):
        extract(b"a.pdf", pdf("x"))

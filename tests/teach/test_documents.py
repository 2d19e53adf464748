"""Documents become passages: by structure, within the budget, whatever the format; and what cannot be read is
said in one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal.records import SealError
from seal.teach.documents import read_document, read_documents, split
from seal.teach.quiz import parse_quiz


def words(text: str) -> int:
    return len(text.split())


MARKDOWN = """---
layout: page
---
# Handbook

Welcome to all.

## Leave

Thirty days a year.

```
# not a heading
```

### Sick leave

Call before nine.

Travel
------

By train.
"""


def test_headings_make_sections_and_code_makes_none(tmp_path: Path) -> None:
    (tmp_path / "handbook.md").write_text(MARKDOWN)
    passages = list(read_documents([str(tmp_path)], 100, words))
    assert [(p["title"], p["context"].split("\n")[0]) for p in passages] == [
        ("Handbook", "Welcome to all."),
        ("Handbook: Leave", "Thirty days a year."),
        ("Handbook: Leave: Sick leave", "Call before nine."),
        ("Handbook: Travel", "By train."),
    ]
    assert "# not a heading" in passages[1]["context"]


def test_html_pdf_and_docx_give_their_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<html><head><title>T</title><style>x{}</style></head><body><nav>menu</nav><h1>Big</h1><div><p>One "
        "<b>bold</b> word.</p>"
        "<ul><li>first</li><li>second</li></ul></div><script>evil()</script></body></html>"
    )
    title, sections = read_document(tmp_path / "a.html")
    assert title == "Big"
    assert sections[0].text.split("\n\n") == ["One bold word.", "first", "second"]

    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Report", 0)
    document.add_heading("Results", 1)
    document.add_paragraph("It worked.")
    document.save(tmp_path / "b.docx")
    title, sections = read_document(tmp_path / "b.docx")
    assert (title, sections[0].headings, sections[0].text) == ("Report", ("Results",), "It worked.")

    (tmp_path / "c.pdf").write_bytes(pdf("The bridge opened in 1932."))
    _, sections = read_document(tmp_path / "c.pdf")
    assert sections[0].text == "The bridge opened in 1932."


def pdf(text: str) -> bytes:
    """The smallest PDF of one line."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % p for p in places))
    out.write(b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start)
    return out.getvalue()


def test_what_cannot_be_read_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pypdf = pytest.importorskip("pypdf")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "broken.docx").write_bytes(b"PK nothing")
    (tmp_path / "picture.jpg").write_bytes(b"x")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "nothing").mkdir()
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "scan.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    (tmp_path / "large.txt").write_text("x" * 2_000_000)
    monkeypatch.setattr("seal.teach.documents.MAX_MEGABYTES", 1)
    for name, says in {
        "binary.txt": "not text in UTF-8",
        "zeros.txt": "zero bytes",
        "broken.pdf": "not a PDF",
        "broken.docx": "not a DOCX",
        "picture.jpg": "of this kind",
        "empty.md": "no text was found",
        "nothing": "no document in it",
        "scan.pdf": "holds no text",
        "locked.pdf": "is encrypted",
        "large.txt": "2 MB, at most 1",
        "absent": "no file or folder",
    }.items():
        with pytest.raises(SealError, match=says) as error:
            list(read_documents([str(tmp_path / name)], 100, words))
        assert "\n" not in str(error.value)


def test_html_keeps_text_beside_and_around_other_elements_once(tmp_path: Path) -> None:
    (tmp_path / "n.html").write_text(
        "<div>Loose text <p>Para.</p><ul><li>Parent item<ul><li>child</li></ul></li></ul></div>"
        "<table><tr><td>Outer cell <table><tr><td>inner</td></tr></table></td></tr></table>"
        "<section>Section text.<br>More</section><dl><dt>term</dt><dd>definition</dd></dl><!-- hidden -->"
    )
    _, sections = read_document(tmp_path / "n.html")
    pieces = sections[0].text.split("\n\n")
    assert pieces == [
        "Loose text",
        "Para.",
        "Parent item",
        "child",
        "Outer cell",
        "inner",
        "Section text.",
        "More",
        "term",
        "definition",
    ]


def test_text_without_spaces_is_cut_anywhere_and_none_is_lost(tmp_path: Path) -> None:
    text = "この都市は一九三二年に開かれた。" * 40
    (tmp_path / "a.txt").write_text(text)
    passages = list(read_documents([str(tmp_path / "a.txt")], 50, len))
    assert all(len(p["context"]) <= 50 for p in passages)
    pieces = split(text, 50, len)
    assert "".join(pieces).replace(" ", "") == text


def test_a_rule_at_the_top_is_no_front_matter_and_a_byte_order_mark_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf---\r\nIntro that matters.\r\n\r\n---\r\n\r\nRest.")
    text = " ".join(p["context"] for p in read_documents([str(tmp_path / "a.md")], 50, words))
    assert "Intro that matters." in text
    assert "Rest." in text
    assert "\ufeff" not in text


def test_a_title_is_never_longer_than_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"# {'word ' * 200}\n\nText.\n")
    assert len(next(read_documents([str(tmp_path / "a.md")], 50, words))["title"]) <= 200


def test_passages_that_are_the_same_come_once_and_hidden_files_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# T\n\nSame words.\n")
    (tmp_path / "b.md").write_text("# T\n\nSame words.\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/c.md").write_text("# T\n\nHidden.\n")
    assert [p["context"] for p in read_documents([str(tmp_path)], 100, words)] == ["Same words."]


@given(st.text(alphabet=st.sampled_from("ab. \n!?"), max_size=400), st.integers(1, 12))
def test_no_piece_is_over_the_budget_and_no_word_is_lost(text: str, budget: int) -> None:
    pieces = split(text, budget, words)
    assert all(words(p) <= budget for p in pieces)
    assert " ".join(pieces).split() == text.split()


@given(st.text(max_size=300))
def test_any_draft_gives_questions_or_nothing(text: str) -> None:
    for question, answer in parse_quiz(text):
        assert "?" in question
        assert answer


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (
            "What is it? Answer: seven.\nQuestion: Who? Answer: Ann Lee",
            [("What is it?", "seven"), ("Who?", "Ann Lee")],
        ),
        (
            "Q: Which colour?\nA: red\n\nQ2: Where is X?\nA2: in Rome",
            [("Which colour?", "red"), ("Where is X?", "in Rome")],
        ),
        ("**Question:** Why? **Answer:** Rain", [("Why?", "Rain")]),
        ("Is Rome in Italy? Answer: Rome", []),  # gives its answer away
        ("What? Answer: " + "word " * 20, []),
        ("Tell me. Answer: no", []),
        ("nothing of the kind", []),
    ],
)
def test_questions_and_answers_are_found_in_a_draft(text: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_quiz(text) == pairs

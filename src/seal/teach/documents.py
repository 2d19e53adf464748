"""People's own documents as passages: Markdown, text, HTML, PDF and DOCX, split by their structure and a
token budget.

A passage is a record ``{id, title, context, source}``; its title is the document's, and the headings that it
stands under.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal.records import Passage, SealError

MAX_MEGABYTES = 50
"""A larger file is refused: it is data, not something to be read."""


MAX_TITLE = 200
"""Characters of a passage's title: it stands before every training row and question."""


@dataclass(frozen=True)
class Section:
    """The text under one heading (paragraphs apart by an empty line), and the headings it stands under,
    outermost first."""

    headings: tuple[str, ...]
    text: str


def read_documents(paths: Sequence[str], budget: int, count: Callable[[str], int]) -> Iterator[Passage]:
    """The passages of files, folders (searched through) and ``-`` (standard input), one document in memory at
    a time. A passage has at most ``budget`` tokens by ``count``; of passages that are the same, the first.

    Raises:
        SealError: nothing to read there, or a file that cannot be read: which, and why.
    """
    seen = set()
    found = False
    for path in _files(paths):
        title, sections = read_document(path)
        for section in sections:
            heading = ": ".join(dict.fromkeys((title, *section.headings)))[:MAX_TITLE]
            for text in split(section.text, budget, count):
                found = True
                key = hashlib.sha256(f"{heading}\n{text}".encode()).hexdigest()[:16]
                if key not in seen:
                    seen.add(key)
                    yield {"id": key, "title": heading, "context": text, "source": _name(path)}
    if not found:
        raise SealError(f"no text was found in {', '.join(paths)}")


def _name(path: Path) -> str:
    """A path as text, whatever bytes the file's name is made of."""
    return str(path).encode("utf-8", "replace").decode()


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for name in paths:
        path = Path(name)
        try:
            is_file, is_folder = path.is_file(), path.is_dir()
        except OSError as error:
            raise SealError(f"{name[:80]}… cannot be read: {error.strerror}") from error
        if name == "-" or is_file:
            yield path
        elif is_folder:
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in READERS and p.is_file() and not _hidden(p, path)
            )
            if not inside:
                raise SealError(f"the folder {path} has no document in it ({' '.join(READERS)})")
            yield from inside
        else:
            raise SealError(f"there is no file or folder {path}")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def read_document(path: Path) -> tuple[str, list[Section]]:
    """A document's title and sections; ``-`` is standard input, read as Markdown.

    Raises:
        SealError: it is of no known kind, too large, not readable, or needs a package that is not there.
    """
    if str(path) == "-":
        try:
            return _markdown("standard input", sys.stdin.buffer.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise SealError(f"standard input is not text in UTF-8 (byte {error.start})") from error
    kind = path.suffix.lower()
    if kind not in READERS:
        raise SealError(f"{path}: documents of this kind cannot be read; those that can: {' '.join(READERS)}")
    try:
        if (size := path.stat().st_size) > MAX_MEGABYTES * 1_000_000:
            raise SealError(
                f"{path} has {size / 1e6:.0f} MB, at most {MAX_MEGABYTES} are read: split it, or take out "
                "what matters"
            )
        return READERS[kind](path)
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise SealError(
            f"{path}: documents of this kind need more packages: pip install 'seal-lm[documents]'"
        ) from error


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SealError(f"{path} is not text in UTF-8 (byte {error.start})") from error
    if "\0" in text:
        raise SealError(f"{path} is not text: it holds zero bytes")
    return text


def _of_text(path: Path) -> tuple[str, list[Section]]:
    return _markdown(path.stem, _text(path))


def _markdown(name: str, text: str) -> tuple[str, list[Section]]:
    """Headings are lines of ``#``, or lines underlined with ``===`` or ``---``; not within fenced code."""
    lines = _without_front_matter(text.replace("\r\n", "\n").split("\n"))
    pieces: list[tuple[int, str]] = []  # (level, heading), or (0, line of text)
    fence = ""
    for line in lines:
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        under = None if fence else re.match(r"(=+|-+)\s*$", line)
        if heading:
            pieces.append((len(heading[1]), heading[2]))
        elif under and pieces and pieces[-1][0] == 0 and pieces[-1][1].strip():
            pieces[-1] = (1 if line[0] == "=" else 2, pieces[-1][1].strip())
        else:
            pieces.append((0, line))
    return _sections(name, pieces)


def _without_front_matter(lines: list[str]) -> list[str]:
    """The lines after a head of settings between two rules; all of them where there is none, or where another
    line stands in it."""
    if lines[0] != "---":
        return lines
    for i, line in enumerate(lines[1:], 1):
        if line == "---":
            return lines[i + 1 :]
        if not re.match(r"[\w-]+:|[ \t#-]", line):
            return lines
    return lines


def _sections(name: str, pieces: Sequence[tuple[int, str]]) -> tuple[str, list[Section]]:
    """Title and sections of headings and lines. The title is the first heading of the first level, or else
    the file's name."""
    title = next((text for level, text in pieces if level == 1 and text), name.replace("_", " "))
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    body: list[str] = []

    def close() -> None:
        text = "\n".join(body).strip()
        if text:
            sections.append(Section(tuple(h for _, h in path if h and h != title), text))
        body.clear()

    for level, text in pieces:
        if level:
            close()
            path[:] = [*(p for p in path if p[0] < level), (level, text)]
        else:
            body.append(text)
    close()
    return title, sections


def _of_html(path: Path) -> tuple[str, list[Section]]:
    from bs4 import BeautifulSoup, Comment, Doctype

    soup = BeautifulSoup(_text(path), "html.parser")
    pieces: list[tuple[int, str]] = []
    words: list[str] = []

    def close(level: int = 0) -> None:
        text = " ".join("".join(words).split())
        words.clear()
        if text:
            pieces.extend([(level, text)] if level else [(0, text), (0, "")])

    def walk(node: Any) -> None:
        for child in node.children:
            name = getattr(child, "name", None)
            if name is None:
                if not isinstance(child, (Comment, Doctype)):
                    words.append(str(child))
            elif name not in UNSEEN:
                block = name in BLOCKS
                if block:
                    close()
                walk(child)
                if block:
                    close(int(name[1]) if re.fullmatch("h[1-6]", name) else 0)

    try:
        walk(soup)
    except RecursionError as error:
        raise SealError(f"{path} is not HTML that can be read: its elements are nested too deep") from error
    close()
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    return _sections(title or path.stem, pieces)


UNSEEN = {"script", "style", "noscript", "template", "nav", "svg", "title", "head"}
BLOCKS = set(
    [
        "p",
        "li",
        "pre",
        "td",
        "th",
        "dd",
        "dt",
        "blockquote",
        "div",
        "section",
        "article",
        "main",
        "header",
        "footer",
        "aside",
        "figure",
        "figcaption",
        "ul",
        "ol",
        "dl",
        "table",
        "tr",
        "tbody",
        "thead",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "form",
        "fieldset",
        "address",
        "details",
        "summary",
        "body",
        "html",
    ]
)


def _of_pdf(path: Path) -> tuple[str, list[Section]]:
    from pypdf import PdfReader

    try:
        reader = PdfReader(path)
        if reader.is_encrypted:
            raise SealError(f"{path} is encrypted: save it without a password first")
        pages = [page.extract_text() for page in reader.pages]
        title = str((reader.metadata.title if reader.metadata else None) or path.stem)
    except SealError:
        raise
    except Exception as error:  # of a library that reads someone else's file
        raise SealError(f"{path} is not a PDF that can be read: {error}") from error
    if not "".join(pages).strip():
        raise SealError(f"{path} holds no text (a scan?): run it through OCR first")
    return title, [Section((), _unwrapped("\n\n".join(pages)))]


def _unwrapped(text: str) -> str:
    """Lines of a page joined to paragraphs: a word broken at a line's end made whole, a line that goes on
    joined to the next."""
    text = re.sub(r"(\w)-\n(?=[a-z])", r"\1", text)
    return re.sub(r"(?<![.!?:\n])\n(?=[^\n])", " ", text)


def _of_docx(path: Path) -> tuple[str, list[Section]]:
    import docx

    try:
        document = docx.Document(str(path))
    except Exception as error:  # of a library that reads someone else's file
        raise SealError(f"{path} is not a DOCX file that can be read: {error}") from error
    pieces: list[tuple[int, str]] = []
    for paragraph in document.paragraphs:
        style = (paragraph.style.name if paragraph.style is not None else "") or ""
        level = re.fullmatch(r"Heading ([1-6])", style)
        pieces.append((1 if style == "Title" else int(level[1]) if level else 0, paragraph.text.strip()))
        pieces += [(0, "")] if pieces[-1][0] == 0 else []
    for table in document.tables:
        for row in table.rows:
            pieces += [(0, " | ".join(cell.text.strip() for cell in row.cells)), (0, "")]
    return _sections(path.stem, [p for p in pieces if p != (1, "")])


READERS: dict[str, Callable[[Path], tuple[str, list[Section]]]] = {
    ".md": _of_text,
    ".markdown": _of_text,
    ".txt": _of_text,
    ".html": _of_html,
    ".htm": _of_html,
    ".pdf": _of_pdf,
    ".docx": _of_docx,
}
"""What can be read, by the ending of the file's name."""


def split(text: str, budget: int, count: Callable[[str], int]) -> list[str]:
    """A text cut at paragraphs into pieces of at most ``budget`` tokens; a longer paragraph at sentences, a
    longer sentence at words, and text without spaces anywhere."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    return _packed([p for p in paragraphs if p], "\n\n", budget, count)


def _packed(parts: Sequence[str], joint: str, budget: int, count: Callable[[str], int]) -> list[str]:
    """Neighbours put together for as long as they fit."""
    pieces: list[str] = []
    for part in parts:
        if pieces and count(longer := pieces[-1] + joint + part) <= budget:
            pieces[-1] = longer
        elif count(part) <= budget:
            pieces.append(part)
        elif joint == "\n\n":
            pieces += _packed(re.split(r"(?<=[.!?])\s+|(?<=[。！？])", part), " ", budget, count)
        elif " " in part:
            words = part.split()
            half = len(words) // 2
            pieces += _packed([" ".join(words[:half]), " ".join(words[half:])], " ", budget, count)
        elif len(part) > 1:  # text without spaces
            half = len(part) // 2
            pieces += _packed([part[:half], part[half:]], "", budget, count)
    return pieces

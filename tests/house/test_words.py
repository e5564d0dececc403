"""Docstrings, comments, messages and documents use plain technical English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

ARCHAIC = re.compile(
    r"""\b(
    afresh | alas | alike | amid | amidst | anew | aught | befall\w* | behold\w* | beside | besides | betwixt
    | by\sheart | dwell\w* | ere | forthwith | foretell\w* | hence | henceforth | hereby | herein | hither | lest | lore
    | mankind | naught | nay | newcomers? | nobody | nought | of\sold | of\stheir\sown\saccord | oft | perchance
    | polite(ly)? | shall | strangers? | tale | tells?\sof | thee | thence | thereby | therein | thereof | thereupon
    | thither | thou | thus | told | unto | upon | whence | wherein | whereby | whereupon | whither | whoever | whom
    | whomever | whosoever | yonder | yore
    | who\s(came|comes|asks|asked|waits|waited|gave|has\scome|is\stold) | is\stold | are\stold | was\stold
    | so\smany(?!\sthat) | at\smost\sso | learnt\sof | under\sthe\s\w+'\s?feet | for\sits\spart | the\slike\sof\swhich
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)
CODE = re.compile(r"``.*?``|`[^`]*`", re.DOTALL)
DATA = (
    "model/emoji/vocabulary.py",  # phrases that are labels
    "model/emoji/nouns.py",
    "model/emoji/keywords.py",
    "service/web/vendor",
    "tests/deploy/schemas",
    "tests/house/test_words.py",
)


def python_files() -> list[Path]:
    return [path for top in ("service", "model", "migrations", "tests", ".ci") for path in (ROOT / top).rglob("*.py")]


def other_files() -> list[Path]:
    found = [
        path for top in ("service", "model", "migrations", "tests", "docker") for path in (ROOT / top).rglob("*.md")
    ]
    found += ROOT.glob("*.md")
    found += [path for path in (ROOT / "service" / "web").rglob("*") if path.suffix in {".html", ".js", ".css"}]
    found += [path for path in (ROOT / "docker").rglob("*") if path.suffix in {".sh", ".yml", ".conf"}]
    return [*found, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "docker-compose.yml"]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and string literals (docstrings, messages, help) of a Python file, with their lines."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


def archaic_words(text: str) -> list[str]:
    return [match[0] for match in ARCHAIC.finditer(CODE.sub("", text))]


def is_data(path: Path) -> bool:
    return any(path.relative_to(ROOT).as_posix().startswith(prefix) for prefix in DATA)


def test_python_files_use_plain_words() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(words)}"
        for path in python_files()
        if not is_data(path)
        for line, text in prose_of(path)
        if (words := archaic_words(text))
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_documents_and_pages_use_plain_words() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {', '.join(words)}"
        for path in other_files()
        if not is_data(path)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (words := archaic_words(line))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "Who comes earlier is a newcomer.",
        "A revocation is learnt of when it is back.",
        "Labels that are few are learned by heart.",
        "The client is told to wait, whoever it is.",
    ],
)
def test_the_list_finds_archaic_sentences(text: str) -> None:
    assert archaic_words(text)


def test_the_list_accepts_technical_sentences() -> None:
    assert not archaic_words("Raises ValueError if the shape differs. `told` is the name of a column.")

"""Claims about README and docs: what they link to, name and tell people to run is there, options included."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("datasets/*/*.md"),
        *ROOT.glob("geolrm/pretrained/*.md"),
    )
)
RUN = re.compile(
    r"(?:python|torchrun .*?)\s+(?:-m\s+(?P<module>(?:geolrm|benchmarks|pipelines)[\w.]*)|(?P<script>\S+\.py))(?P<rest>.*)"
)
MADE = ("benchmarks/methods/ball.py",)  # the example that docs/add-a-method.md writes


def pieces(page: str) -> Iterator[str]:
    """The command lines of a page, indented or in backticks; lines that go on are joined, comments cut off."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))
    for line in lines:
        yield from (part.strip() for part in line.partition("  #")[0].split("&&"))


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(file, options) of every command of a page that runs a module or script of this project."""
    for piece in pieces(page):
        if found := RUN.search(piece):
            file = found["script"] or found["module"].replace(".", "/")
            yield file, [word.partition("=")[0] for word in shlex.split(found["rest"]) if word.startswith("--")]


def source(file: str) -> Path | None:
    """The file that a command runs; of a package, its `__main__`."""
    places = (ROOT / file, ROOT / f"{file}.py", ROOT / file / "__main__.py")
    return next((place for place in places if place.is_file()), None)


def names(path: Path) -> set[str]:
    """Arguments and fields that the file defines: what its command line can be made of."""
    tree = ast.parse(path.read_text())
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    fields = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    literal = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return arguments | fields | {text.removeprefix("--").replace("-", "_") for text in literal if text.startswith("--")}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_there_with_its_options(page: str) -> None:
    wrong = []
    for file, options in commands(page):
        path = source(file)
        if path is None:
            wrong.append(file)
            continue
        known = names(path) | {"help"}
        wrong += [f"{file} {option}" for option in options if option[2:].replace("-", "_") not in known]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    wrong = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    named = re.findall(r"`((?:geolrm|benchmarks|pipelines|tests|docs|presets)/[\w./-]+)`", text)
    wrong += [name for name in named if not (ROOT / name).exists() and name not in MADE]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_of_the_geolrm_command_is_there_with_its_options(page: str) -> None:
    files = [ROOT / "geolrm" / "cli.py", ROOT / "geolrm" / "data" / "commands.py"]
    words = {
        node.value for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
    }
    words |= {path.stem for folder in ("presets", "datasets") for path in (ROOT / folder).iterdir()}
    options = set().union(*map(names, files))
    for piece in pieces(page):
        if piece.startswith("geolrm "):
            said = [word for word in shlex.split(piece)[1:] if re.fullmatch(r"[a-z0-9_]+|--[a-z-]+", word)]
            said = [word for word in said if not word.isdigit()]
            assert {w for w in said if w not in words and w[2:].replace("-", "_") not in options} == set(), piece


def test_the_commands_of_pages_are_found() -> None:
    assert len([page for page in PAGES if list(commands(page))]) >= 10
    assert ("pipelines/render_meshes", ["--layout", "--input"]) in list(commands("docs/real-scans.md"))
    assert ("pipelines/train_proposal", ["--minutes"]) in list(commands("docs/training.md"))
    assert "geolrm data fetch gso --limit 100 --dry-run" in list(pieces("README.md"))

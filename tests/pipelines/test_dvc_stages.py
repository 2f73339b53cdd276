"""Claims about dvc.yaml: a stage runs again whenever code that it uses changes, and names no code that it does not use."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SHAPE_NO_RESULT = {
    "geolrm/__init__.py",  # hands `load_pretrained` on to users
    "geolrm/failures.py",
    "geolrm/files.py",
    "geolrm/download.py",
}  # and how errors are told, how bytes travel
FOUND_BY_NAME = {"sweep": "benchmarks/methods"}  # modules that a stage imports by the name of their file


def module_file(name: str) -> str | None:
    """The project's file of a module or package, relative to the root; None for any other name."""
    path = ROOT.joinpath(*name.split("."))
    file = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return None if file is None else file.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of the modules that code imports anywhere, inside functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def used_files(roots: set[str]) -> set[str]:
    """The project's files that these import, and those that they do: packages that hold nothing but a docstring left out."""
    found: set[str] = set()
    left = set(roots)
    while left:
        file = left.pop()
        tree = ast.parse((ROOT / file).read_text())
        if len(tree.body) > 1:
            found.add(file)
        for name in imports(tree):
            parts = name.split(".")
            files = {module_file(".".join(parts[:count])) for count in range(1, len(parts) + 1)}
            left |= {file for file in files if file} - found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_that_a_stage_depends_on_is_the_code_that_it_uses(stage: str) -> None:
    roots = {module_file(STAGES[stage]["cmd"].split()[2]) or ""}
    if folder := FOUND_BY_NAME.get(stage):
        names = {path.stem for path in (ROOT / folder).iterdir() if not path.name.startswith("__")}
        roots |= {module_file(f"{folder.replace('/', '.')}.{name}") or "" for name in names}
    used = used_files(roots) - SHAPE_NO_RESULT
    named = [dep for dep in STAGES[stage]["deps"] if dep.endswith(".py") or module_file(dep.replace("/", "."))]
    assert {file for file in used if not any(Path(file).is_relative_to(dep) for dep in named)} == set()
    assert {dep for dep in named if not any(Path(file).is_relative_to(dep) for file in used)} == set()

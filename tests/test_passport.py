"""Claims about the passport: it names the code that ran, and admits to changes of it."""

import json
import subprocess
from pathlib import Path

import pytest

from geolrm.passport import commit, passport


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_clean_code_is_named_by_its_commit(repository: Path) -> None:
    assert commit(repository) == git(repository, "rev-parse", "HEAD")
    (repository / "results.txt").write_text("untracked files are no code")
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_uncommitted_changes_are_marked(repository: Path) -> None:
    (repository / "code.py").write_text("a = 2\n")
    assert commit(repository) == git(repository, "rev-parse", "HEAD") + "+"
    git(repository, "add", "code.py")
    assert commit(repository) == git(repository, "rev-parse", "HEAD") + "+"


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) is None


def test_it_says_where_and_with_what_and_takes_what_the_caller_knows() -> None:
    found = passport(seed=3, protocol="p")
    assert {"commit", "device", "processor", "cores", "versions"} <= found.keys()
    assert (found["seed"], found["protocol"]) == (3, "p")
    assert {"python", "torch", "numpy"} <= found["versions"].keys()
    assert found["cores"] >= 1
    assert json.loads(json.dumps(found)) == found
    assert "seed" not in passport()

"""The notebooks: git holds them without outputs; each runs from a fresh clone, top to bottom, in a minute of processor time."""

import resource
import shutil
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - builds the fonts' cache, of which the first notebook would tell on stderr
import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_results import write_results

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 60  # of a processor: a minute on an idle one, and no other test that runs beside can make it more


def named(path: Path) -> str:
    return path.stem


@pytest.fixture
def clone(monkeypatch):
    """What a fresh clone gives a notebook: its folder and the presets, no data, no results; temporary files go to `tmp`.

    Its path is short, since the sockets of worker processes lie in `tmp`, and the system bounds the length of their names.
    """
    tmp_path = Path(tempfile.mkdtemp(prefix="nb-"))
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    for folder in ("notebooks", "tmp"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(threads, "1")  # threads that wait for one another spin, and count as work
    yield tmp_path
    shutil.rmtree(tmp_path)


def run(name: str, clone: Path) -> tuple[nbformat.NotebookNode, float]:
    """A notebook with its outputs, and the seconds of a processor that it took. Raises what a cell raises."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = {"metadata": {"path": str(clone / "notebooks")}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=folder).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return notebook, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def test_there_are_four_and_the_page_names_each():
    assert {path.stem for path in NOTEBOOKS} == {"one-object", "look-at-a-dataset", "read-a-sweep", "add-a-method"}
    page = (ROOT / "notebooks" / "README.md").read_text()
    assert [path.name for path in NOTEBOOKS if f"[{path.name}]({path.name})" not in page] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_git_holds_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    remedy = "jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"
    assert outputs(notebook) == [], remedy
    assert [cell.id for cell in notebook.cells if cell.get("execution_count") is not None] == [], remedy
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_runs_from_a_fresh_clone_in_a_minute_and_leaves_nothing(path, clone):
    notebook, seconds = run(path.stem, clone)
    assert seconds < SECONDS
    assert sum("image/png" in output.get("data", ()) for output in outputs(notebook)) >= 2, "it shows pictures"
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert {found.name for folder in (clone, clone / "notebooks") for found in folder.iterdir()} == {
        *("notebooks", "presets", "tmp")
    }
    assert list((clone / "tmp").rglob("*.tar")) == [], "data sets go with the notebook"


def test_a_sweep_that_lies_there_is_read(clone):
    write_results(clone / "results" / "smoke")
    notebook, _ = run("read-a-sweep", clone)
    assert "../results/smoke/sweep/procedural/rows.jsonl: 48 rows" in printed(notebook)


def test_a_dataset_that_lies_there_is_shown(clone, tiny_dataset, tiny_params):
    (clone / "datasets" / "procedural").mkdir(parents=True)
    (clone / "datasets" / "procedural" / "smoke").symlink_to(tiny_dataset / "datasets/procedural" / tiny_params.preset)
    notebook, _ = run("look-at-a-dataset", clone)
    assert "../datasets/procedural/smoke\n" in printed(notebook)

"""The README's numbers are those of the committed files, and a stale table is noticed."""

import json
from pathlib import Path

import pytest
from synthetic_results import METHODS, write_results

from benchmarks.estimates import summarise
from benchmarks.tables import BEGIN, END, update_readme
from geolrm.failures import BadInput

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readme(tmp_path):
    committed = tmp_path / "docs" / "results"
    committed.mkdir(parents=True)
    summary = summarise(write_results(tmp_path / "results" / "smoke"))
    (committed / "smoke.json").write_text(json.dumps(summary))
    (committed / "timings.json").write_text('{"seconds": 1}')  # another kind of result, none of ours
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return file


def refused(page, committed):
    with pytest.raises(BadInput, match="readme_stale"):
        update_readme(page, committed, check=True)


def test_a_table_round_trip_is_current_and_a_changed_result_is_not(readme):
    committed = readme.parent / "docs" / "results"
    refused(readme, committed)
    assert "old" in readme.read_text()  # a check changes nothing
    update_readme(readme, committed)
    update_readme(readme, committed, check=True)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for method in METHODS:
        assert f"| `{method}` |" in text
    assert "made-up at smaller sizes" in text
    assert "| `geolrm` | 18.00 | 19.50 | 21.00 | 21.59 | 0.905 |" in text  # beside the curve: SSIM at the most views

    summary = json.loads((committed / "smoke.json").read_text())
    group = summary["sweeps"]["procedural"]["groups"]["procedural"]
    group["methods"]["geolrm"]["4"]["metrics"]["psnr_foreground"]["mean"] = 17.0
    (committed / "smoke.json").write_text(json.dumps(summary))
    refused(readme, committed)


@pytest.mark.parametrize("text", ["no markers\n", f"{BEGIN}\nwithout an end\n"])
def test_a_readme_without_both_markers_is_refused(readme, text):
    readme.write_text(text)
    with pytest.raises(BadInput, match="results:begin"):
        update_readme(readme, readme.parent / "docs" / "results")


def test_a_summary_of_another_version_is_refused(readme):
    (readme.parent / "docs" / "results" / "old.json").write_text('{"format": "geolrm-summary-0"}')
    with pytest.raises(BadInput, match="geolrm-summary-0"):
        update_readme(readme, readme.parent / "docs" / "results")


def test_another_page_shows_the_summaries_it_names_and_links_to_them_from_where_it_lies(readme):
    committed = readme.parent / "docs" / "results"
    (committed / "other.json").write_text((committed / "smoke.json").read_text())
    page = readme.parent / "docs" / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    update_readme(page, committed, only=["other.json"])
    assert "[other.json](results/other.json)" in page.read_text()
    assert "smoke.json" not in page.read_text()


def test_a_summary_that_is_named_and_not_there_is_refused(readme):
    with pytest.raises(BadInput, match="summary_missing"):
        update_readme(readme, readme.parent / "docs" / "results", only=["none.json"])


@pytest.mark.parametrize(("page", "only"), [("README.md", None), ("docs/real-scans.md", ["scans.json"])])
def test_the_committed_pages_show_the_committed_results(page, only):
    update_readme(ROOT / page, ROOT / "docs" / "results", check=True, only=only)


def test_a_caption_names_the_group_where_its_name_is_not_the_sweeps(readme):
    committed = readme.parent / "docs" / "results"
    summary = json.loads((committed / "smoke.json").read_text())
    groups = summary["sweeps"]["procedural"]["groups"]
    groups["all objects"] = groups["procedural"]
    (committed / "smoke.json").write_text(json.dumps(summary))
    update_readme(readme, committed)
    assert "**procedural: all objects**, 3 objects" in readme.read_text()
    assert "**procedural**, 3 objects" in readme.read_text()


def test_a_metric_without_a_value_is_a_dash_and_never_a_zero(readme):
    update_readme(readme, readme.parent / "docs" / "results")
    assert "| `geolrm` | 18.00 | 19.50 | 21.00 | 21.59 | 0.905 | \u2013 |" in readme.read_text()  # LPIPS had no weights


def test_a_summary_that_holds_no_json_is_named(readme):
    (readme.parent / "docs" / "results" / "cut.json").write_text('{"format": "geolrm-summ')
    with pytest.raises(BadInput, match=r"cut\.json"):
        update_readme(readme, readme.parent / "docs" / "results")

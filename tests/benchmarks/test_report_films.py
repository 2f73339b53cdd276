"""The report shows the turntables of the objects whose pictures it shows, inside the page."""

import base64
import re

from synthetic_results import VIEWS, write_results

from benchmarks.estimates import summarise
from benchmarks.report import Page, add_sweep


def cards(results) -> list[str]:
    summary, page = summarise(results), Page()
    add_sweep(page, results, "procedural", summary["sweeps"]["procedural"])
    return re.findall(r'<div class="pictures">.*?</table>', "\n".join(page.sections), re.DOTALL)


def test_every_view_count_of_the_best_and_the_worst_object_has_its_film(tmp_path):
    results = write_results(tmp_path / "smoke")
    best, worst = cards(results)
    for card in (best, worst):
        films = re.findall(r'<video [^>]*src="data:video/webm;base64,([^"]+)">', card)
        assert [base64.b64decode(film) for film in films] == [b"webm made up"] * len(VIEWS)
        assert "<th>turntable</th>" in card


def test_a_film_that_was_not_kept_is_a_dash(tmp_path):
    results = write_results(tmp_path / "smoke")
    for film in results.rglob("turntable.webm"):
        film.unlink()
    best, worst = cards(results)
    assert "<video" not in best + worst
    assert best.count("<td>–</td>") == len(VIEWS)

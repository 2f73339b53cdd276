"""Licences: one name each, and silence is no permission."""

import pytest

from geolrm.data.licences import allowed, parse_allowed, spdx
from geolrm.failures import BadInput


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("by", "CC-BY-4.0"),
        ("by-nc", "CC-BY-NC-4.0"),
        ("by-nc-sa", "CC-BY-NC-SA-4.0"),
        ("by-sa", "CC-BY-SA-4.0"),
        ("by-nd", "CC-BY-ND-4.0"),
        ("cc0", "CC0-1.0"),
        ("CC0 1.0", "CC0-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
        ("cc-by-3.0", "CC-BY-3.0"),
        ("Creative Commons - Attribution", "CC-BY-4.0"),
        ("Creative Commons - Attribution - Share Alike", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("Creative Commons - Attribution - Non Commercial - No Derivatives", "CC-BY-NC-ND-4.0"),
        ("Creative Commons - Public Domain", "CC0-1.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("Free Standard", "unknown"),
        ("proprietary, by me", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_licence_has_one_name(written, meant):
    assert spdx(written) == meant


def test_without_a_list_everything_is_allowed():
    assert all(allowed(name, ()) for name in ("by", "by-nc", None))


def test_a_list_admits_what_it_names_and_nothing_else():
    allow = parse_allowed(["CC BY 4.0", "cc0"])
    assert [allowed(name, allow) for name in ("by", "cc0", "by-sa", "by-nc", None)] == [True, True, False, False, False]


def test_commercial_admits_what_does_not_forbid_it_and_never_what_is_unknown():
    allow = parse_allowed(["commercial"])
    assert [allowed(name, allow) for name in ("by", "by-sa", "by-nc", "by-nc-sa", None)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert allowed(None, parse_allowed(["commercial", "unknown"]))


def test_a_word_that_names_no_licence_is_refused():
    with pytest.raises(BadInput, match="licence_unknown"):
        parse_allowed(["CC-BYE-4.0"])

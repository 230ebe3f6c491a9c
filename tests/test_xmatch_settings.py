"""The value of CATALOG as both READMEs of ALeRCE describe it."""

import json

import pytest

from xmatch.settings import CatalogSetting, parse_catalog_setting

ALLWISE = {"name": "allwise", "columns": ["AllWISE", "W1mag"]}
YAML = """
- name: allwise
  columns: [AllWISE, W1mag]
  service_url: http://127.0.0.1:8080
  selection: 1
- name: gaia
  columns:
    - source_id
  service_url:
"""


def test_one_object_and_a_list() -> None:
    expected = CatalogSetting("allwise", ("AllWISE", "W1mag"))
    assert parse_catalog_setting(ALLWISE) == [expected]
    assert parse_catalog_setting([ALLWISE]) == [expected]
    assert parse_catalog_setting(json.dumps(ALLWISE)) == [expected]
    assert parse_catalog_setting(json.dumps([ALLWISE], indent="\t")) == [expected]


def test_yaml() -> None:
    assert parse_catalog_setting(YAML) == [
        CatalogSetting("allwise", ("AllWISE", "W1mag"), "http://127.0.0.1:8080", 1),
        CatalogSetting("gaia", ("source_id",)),
    ]
    assert parse_catalog_setting("name: allwise") == [CatalogSetting("allwise")]


@pytest.mark.parametrize("blank", [None, ""])
def test_blank_values(blank) -> None:
    setting = ALLWISE | {"service_url": blank, "selection": blank, "columns": blank}
    assert parse_catalog_setting(setting) == [CatalogSetting("allwise")]


@pytest.mark.parametrize(("radius", "expected"), [(2, 2.0), (0.5, 0.5), ("1.5", 1.5), ("", None), (None, None)])
def test_radius_of_a_catalogue(radius, expected) -> None:
    assert parse_catalog_setting(ALLWISE | {"radius": radius})[0].radius_arcsec == expected


def test_selection_as_text() -> None:
    assert parse_catalog_setting(ALLWISE | {"selection": "3"})[0].selection == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ALLWISE | {"colums": []}, "unknown key 'colums'; the keys are: name, columns, service_url, selection"),
        ({"columns": []}, "name is required"),
        ({"name": " "}, "name is required"),
        ({"name": 5}, "name is required"),
        (ALLWISE | {"columns": "AllWISE"}, "columns must be a list"),
        (ALLWISE | {"columns": [1]}, "columns must be a list"),
        (ALLWISE | {"selection": 0}, "selection must be a positive integer"),
        (ALLWISE | {"selection": True}, "selection must be a positive integer"),
        (ALLWISE | {"selection": "best"}, "selection must be a positive integer"),
        (ALLWISE | {"radius": 0}, "radius must be a positive number of arcseconds, not 0"),
        (ALLWISE | {"radius": True}, "radius must be a positive number"),
        (ALLWISE | {"radius": "wide"}, "radius must be a positive number"),
        (ALLWISE | {"service_url": 8080}, "service_url must be text"),
        ([ALLWISE, ALLWISE], "names allwise twice"),
        ([], "one catalogue or a list"),
        ("", "one catalogue or a list"),
        ("allwise", "one catalogue or a list"),
        (["allwise"], "not 'allwise'"),
        ("{name: [", "neither JSON nor YAML"),
    ],
)
def test_errors_name_the_fault(value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_catalog_setting(value)

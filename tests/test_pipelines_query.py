"""`alertbeam catalog query`."""

import argparse
import json

import pytest

from pipelines import query_command
from pipelines.usage import DONE, UsageError
from xmatch.catalog import build_catalog

HOURS = 12 + 41 / 60 + 31.47 / 3600
SOUTH = -(33 + 2 / 60 + 33.6 / 3600)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    catalog = parser.add_subparsers().add_parser("catalog")
    query_command.add_action(catalog.add_subparsers())
    return parser.parse_args(["catalog", "query", *arguments])


def run(*arguments: str) -> int:
    options = parse(*arguments)
    return options.command(options, (), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("query")
    (directory / "sky.csv").write_text(
        "AllWISE,RAJ2000,DEJ2000,W1mag\n[J]far,10.5,-33.199,\nJnear,10.5,-33.1999,12.25\nJaway,10.5,-33.3,11\n"
    )
    catalog = build_catalog(
        directory / "sky.csv", directory / "sky", name="allwise", columns=["AllWISE", "RAJ2000", "DEJ2000", "W1mag"]
    )
    return str(catalog.path)


@pytest.mark.parametrize(
    ("ra", "dec", "expected"),
    [
        ("10.5", "-33.2", (10.5, -33.2)),
        ("10", "-33", (10, -33)),
        ("0", "-.5", (0, -0.5)),
        ("1e1", "-3.3e1", (10, -33)),
        ("12:41:31.47", "-33:02:33.6", (HOURS * 15, SOUTH)),
        ("12h41m31.47s", "-33d02m33.6s", (HOURS * 15, SOUTH)),
        ("12 41 31.47", "-33 02 33.6", (HOURS * 15, SOUTH)),
        ("10d30m", "-0:30:00", (10.5, -0.5)),
    ],
)
def test_positions_in_degrees_and_sexagesimal(ra, dec, expected):
    options = parse("allwise", ra, dec, "--radius", "3", "-k", "2")
    assert (options.ra, options.dec) == pytest.approx(expected, rel=1e-14)
    assert (options.radius, options.k) == (3.0, 2)


@pytest.mark.parametrize(
    ("ra", "dec", "message"),
    [
        ("10", "-90.1", "a declination lies between -90 and 90"),
        ("ten", "0", "'ten' is not an angle"),
        ("nan", "0", "nan is not an angle"),
    ],
)
def test_what_is_no_position_is_refused(ra, dec, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("allwise", ra, dec)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_table(folder, capsys):
    assert run(folder, "10.5", "-33.2") == DONE
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "allwise: 2 sources within 5″ of 10.5000000 -33.2000000"
    heads, head_units, _, near, far = (line.split() for line in lines if line.strip())
    assert heads == ["separation", "AllWISE", "RAJ2000", "DEJ2000", "W1mag"]
    assert head_units == ["arcsec", "deg", "deg", "mag"]
    assert near == ["0.3600", "Jnear", "10.5", "-33.1999", "12.25"]
    assert far == ["3.6000", "[J]far", "10.5", "-33.199"]


@pytest.mark.parametrize("width", [42, 34])
def test_narrow_terminal_has_a_column_for_each_source(folder, capsys, monkeypatch, width):
    monkeypatch.setattr(query_command, "_WIDTH_OF_A_FILE", width)
    assert run(folder, "10.5", "-33.2") == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:] if line.strip()]
    if width == 42:
        assert lines[:2] == [["separation", "arcsec", "0.3600", "3.6000"], ["AllWISE", "Jnear", "[J]far"]]
        assert lines[4:] == [["W1mag", "mag", "12.25"]]
    else:
        assert lines[:2] == [["separation", "arcsec", "0.3600"], ["AllWISE", "Jnear"]]
        assert lines[4:7] == [["W1mag", "mag", "12.25"], ["separation", "arcsec", "3.6000"], ["AllWISE", "[J]far"]]


def test_number_of_sources(folder, capsys):
    assert run(folder, "10.5", "-33.2", "-k", "1") == DONE
    assert capsys.readouterr().out.startswith("allwise: the 1 nearest source within 5″")
    assert run(folder, "10.5", "-33.2", "--radius", "0.1") == DONE
    assert capsys.readouterr().out == "allwise: no sources within 0.1″ of 10.5000000 -33.2000000\n"


def test_json(folder, capsys):
    assert run(folder, "370.5", "-33.2", "--radius", "600", "--json") == DONE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["catalog"], answer["dec"], answer["radius_arcsec"]) == ("allwise", -33.2, 600.0)
    assert answer["units"]["W1mag"] == "mag"
    assert [source["AllWISE"] for source in answer["sources"]] == ["Jnear", "[J]far", "Jaway"]
    assert [source["W1mag"] for source in answer["sources"]] == [12.25, None, 11.0]
    assert answer["sources"][0]["separation_arcsec"] == pytest.approx(0.36, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--radius", "0"], "radius must be above 0"), (["-k", "0"], "neighbours must be at least 1")],
)
def test_wrong_usage(folder, arguments, message):
    with pytest.raises(UsageError, match=message):
        run(folder, "1", "2", *arguments)
    with pytest.raises(UsageError, match="not a catalogue"):
        run(folder + "-absent", "1", "2")

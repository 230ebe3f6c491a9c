"""Pictures of light curves."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightcurves.plot import draw_light_curve, light_curve_figure

PERIOD_DAYS = 0.7


@pytest.fixture
def detections() -> pd.DataFrame:
    mjd = np.linspace(59000, 59100, 40)
    wave = 0.4 * np.sin(2 * np.pi * mjd / PERIOD_DAYS)
    return pd.DataFrame(
        {
            "mjd": mjd,
            "fid": np.tile([1, 2], 20),
            "isdiffpos": np.where(wave < 0, 1, -1),
            "magpsf": 18 + wave,
            "sigmapsf": 0.05,
            "magpsf_corr": 16 + wave,
            "sigmapsf_corr_ext": 0.01,
        }
    )


@pytest.fixture
def limits() -> pd.DataFrame:
    return pd.DataFrame({"mjd": [58990.0, 58995.0], "fid": [1, 2], "diffmaglim": [20.5, 20.1]})


def drawn(axes) -> int:
    """Points with error bars in a panel."""
    return sum(len(container[0].get_xdata()) for container in axes.containers)


def test_magnitudes_rise_downwards_and_every_point_is_drawn(detections, limits) -> None:
    (axes,) = light_curve_figure("ZTF1", detections, limits).axes
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert drawn(axes) == len(detections)


def test_limits_lie_at_their_magnitude(detections, limits) -> None:
    (axes,) = light_curve_figure("ZTF1", detections, limits).axes
    labels = axes.get_legend_handles_labels()[1]
    assert {"g limit", "r limit", "g", "r", "g fainter than the reference"} <= set(labels)
    bottom, _ = axes.get_ylim()
    assert bottom > 20.5


def test_apparent_magnitudes_have_limits_without_a_magnitude(detections, limits) -> None:
    (axes,) = light_curve_figure("ZTF1", detections, limits, apparent=True).axes
    bottom, top = axes.get_ylim()
    assert 15.4 < top < 15.7
    assert 16.3 < bottom < 16.6
    assert "g not detected" in axes.get_legend_handles_labels()[1]


def test_folding_puts_equal_phases_together(detections, limits) -> None:
    figure = light_curve_figure("ZTF1", detections, limits, period_days=PERIOD_DAYS)
    folded = figure.axes[1]
    assert drawn(folded) == 2 * len(detections)
    phases = np.concatenate([container[0].get_xdata() for container in folded.containers]).astype(float)
    magnitudes = np.concatenate([container[0].get_ydata() for container in folded.containers]).astype(float)
    assert phases.min() >= 0
    assert phases.max() < 2
    expected = 18 + 0.4 * np.sin(2 * np.pi * (phases + detections["mjd"].min() / PERIOD_DAYS))
    np.testing.assert_allclose(magnitudes, expected, atol=1e-6)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_picture_is_written(tmp_path: Path, detections, limits, ending) -> None:
    path = tmp_path / f"curve{ending}"
    draw_light_curve(path, "ZTF1", detections, limits, notes=["AllWISE J1 at 0.2″"])
    assert path.stat().st_size > 1000
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_the_same_light_curve_gives_the_same_file(tmp_path: Path, detections, limits) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        draw_light_curve(tmp_path / name, "ZTF1", detections, limits, period_days=PERIOD_DAYS)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_hopeless_points_do_not_squeeze_the_picture(detections, limits) -> None:
    detections.loc[0, "magpsf_corr"] = 100.0
    detections.loc[1, "sigmapsf_corr_ext"] = 50.0
    (axes,) = light_curve_figure("ZTF1", detections, limits, apparent=True).axes
    assert drawn(axes) == len(detections) - 2
    assert axes.get_ylim()[0] < 17


def test_limits_alone_are_drawn(tmp_path: Path, detections, limits) -> None:
    draw_light_curve(tmp_path / "limits.png", "ZTF1", detections.iloc[:0], limits)
    assert (tmp_path / "limits.png").exists()


def test_nothing_to_draw_and_unknown_formats_are_refused(tmp_path: Path, detections, limits) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_light_curve(tmp_path / "curve.gif", "ZTF1", detections, limits)
    with pytest.raises(ValueError, match="no detections and no limits"):
        draw_light_curve(tmp_path / "curve.png", "ZTF1", detections.iloc[:0], limits.iloc[:0])
    assert not list(tmp_path.iterdir())

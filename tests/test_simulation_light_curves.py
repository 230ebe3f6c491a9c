"""Simulated light curves of known class."""

import numpy as np
import pytest

from simulation.light_curves import CLASSES, LabelledLightCurves, simulate_light_curves


@pytest.fixture(scope="module")
def curves() -> LabelledLightCurves:
    return simulate_light_curves(6, seed=3)


def test_every_class_is_there_and_known(curves) -> None:
    objects = curves.objects.to_pandas()
    assert objects["class"].value_counts().to_dict() == dict.fromkeys(CLASSES, 6)
    assert objects["oid"].is_unique
    assert set(curves.detections["oid"].unique().to_pylist()) <= set(objects["oid"])
    assert objects["dec"].between(-30, 90).all()


def test_the_same_seed_gives_the_same_tables_and_another_others(curves) -> None:
    again = simulate_light_curves(6, seed=3)
    assert again.detections.equals(curves.detections)
    assert again.non_detections.equals(curves.non_detections)
    assert again.objects.equals(curves.objects)
    assert not simulate_light_curves(6, seed=4).detections.equals(curves.detections)


def test_an_object_does_not_depend_on_how_many_there_are(curves) -> None:
    few = simulate_light_curves(1, seed=3).detections.to_pandas().drop(columns="candid")
    many = curves.detections.to_pandas().drop(columns="candid")
    many = many[many["oid"].isin(few["oid"].unique())]
    assert few.reset_index(drop=True).equals(many.reset_index(drop=True))


def test_detections_are_what_a_difference_image_shows(curves) -> None:
    found = curves.detections.to_pandas()
    assert found["candid"].is_unique
    assert np.isfinite(found.drop(columns="oid").to_numpy(float)).all()
    assert found["sigmapsf"].between(0, 0.2172).all()
    assert found["rb"].between(0.5, 1).all()
    objects = curves.objects.to_pandas().set_index("oid")
    kind = objects.loc[found["oid"], "class"].to_numpy()
    explosions = np.isin(kind, ["SLSN", "SNII", "SNIa", "SNIbc"])
    assert (found["isdiffpos"][explosions] == 1).all()
    assert (found["distnr"][explosions] > 1.4).all()
    assert (found["distnr"][~explosions] < 1.4).all()
    assert (found["isdiffpos"][~explosions] == -1).any()


def test_periodic_stars_repeat_at_their_period(curves) -> None:
    """The magnitude at one phase scatters less than the magnitude at any time."""
    objects = curves.objects.to_pandas().set_index("oid")
    found = curves.detections.to_pandas()
    flux = 10 ** (-0.4 * found["magnr"]) + found["isdiffpos"] * 10 ** (-0.4 * found["magpsf"])
    found["magnitude"] = -2.5 * np.log10(flux)
    checked = 0
    for oid in objects.index[objects["class"] == "RRL"]:
        part = found[(found["oid"] == oid) & (found["fid"] == 1)]
        if len(part) < 30:
            continue
        phase = (part["mjd"] / objects.loc[oid, "period_days"]) % 1
        magnitude = part["magnitude"].to_numpy()[np.argsort(phase.to_numpy())]
        assert np.mean(np.diff(magnitude) ** 2) < 0.7 * 2 * np.var(magnitude)
        checked += 1
    assert checked >= 3


def test_limits_are_of_nights_without_detection(curves) -> None:
    limits = curves.non_detections.to_pandas()
    assert limits["diffmaglim"].between(18, 23).all()
    found = curves.detections.to_pandas()
    both = found.merge(limits, on=["oid", "fid", "mjd"])
    assert both.empty

"""What a stream does before it reads: kernels are compiled while nobody waits for them."""

from __future__ import annotations

import logging
import time

from lightcurves.assembly import assemble
from lightcurves.features.compute import Mode, compute_features
from pipelines.stream import StreamJob
from simulation.light_curves import simulate_light_curves

_LOGGER = logging.getLogger(__name__)
_LONG_S = 5.0


def warm_up(job: StreamJob) -> None:
    """Compile, or load, the kernels of the features that a stream computes."""
    compile_features(job.mode, job.forced)


def compile_features(mode: Mode, forced: bool) -> None:
    """Compute the features of some simulated objects: the first ones on a machine take a minute, others 2 s.

    Parameters
    ----------
    mode, forced
        See :func:`~lightcurves.features.compute.compute_features`.
    """
    _LOGGER.info("compiling, or loading, the kernels of the features")
    started = time.monotonic()
    curves = simulate_light_curves(1, seed=1, days=200.0)
    compute_features(assemble(curves.detections, curves.non_detections), mode=mode, forced=forced)
    if (seconds := time.monotonic() - started) > _LONG_S:
        _LOGGER.info("compiled in %.0f s; later starts are quick", seconds)

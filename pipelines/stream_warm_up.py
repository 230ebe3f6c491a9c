"""What a stream does before it reads: kernels are compiled while nobody waits for them."""

from __future__ import annotations

import logging
import time

from lightcurves.assembly import assemble
from lightcurves.features.compute import compute_features
from pipelines.stream import StreamJob
from simulation.light_curves import simulate_light_curves

_LOGGER = logging.getLogger(__name__)
_LONG_S = 5.0


def warm_up(job: StreamJob) -> None:
    """Compute the features of some simulated objects: the first ones on a machine take a minute, others 2 s."""
    _LOGGER.info("compiling, or loading, the kernels of the features")
    started = time.monotonic()
    curves = simulate_light_curves(1, seed=1, days=200.0)
    compute_features(assemble(curves.detections, curves.non_detections), mode=job.mode, forced=job.forced)
    if (seconds := time.monotonic() - started) > _LONG_S:
        _LOGGER.info("compiled in %.0f s; later starts are quick", seconds)

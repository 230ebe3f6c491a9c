"""A pool of image stamps: gzipped FITS as ZTF packets carry them."""

import gzip
import io

import numpy as np

from simulation.encode import zigzag
from simulation.population import random_stream

STAMP_PIXELS = 63
KINDS = ("Science", "Template", "Difference")
_CUTOUT_STREAM = 4
_EDGE_FRACTION = 0.1


def _gzipped_fits(image: np.ndarray) -> bytes:
    # Loading astropy takes half a second, which users of the rest of the simulation need not wait for.
    from astropy.io import fits

    header = fits.Header()
    header["BUNIT"] = "DN"
    raw = io.BytesIO()
    fits.PrimaryHDU(image.astype(">f4"), header=header).writeto(raw)
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)


def stamp_pool(seed: int, size: int) -> dict[str, list[bytes]]:
    """Draw the pool: for each cutout kind, `size` stamps as Avro ``bytes`` (gzipped FITS, 63 by 63 float32).

    Difference stamps with an even number have a positive source, those with an odd number a negative one. One stamp in
    ten lies on the edge of the detector and holds NaN columns, as in real packets.
    """
    rng = random_stream(seed, _CUTOUT_STREAM)
    axis = np.arange(STAMP_PIXELS) - STAMP_PIXELS // 2
    pool: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for i in range(size):
        dx, dy = rng.normal(0.0, 0.5, 2)
        radius2 = (axis[:, None] - dy) ** 2 + (axis[None, :] - dx) ** 2
        source = np.exp(-0.5 * radius2 / rng.uniform(0.9, 1.5) ** 2) * 10 ** rng.uniform(2.0, 3.5)
        neighbour = np.roll(source, rng.integers(8, 25, 2), axis=(0, 1)) * rng.uniform(0.1, 1.0)
        background, noise = rng.uniform(60.0, 300.0), rng.uniform(5.0, 15.0)
        shape = (STAMP_PIXELS, STAMP_PIXELS)
        images = {
            "Science": background + source + neighbour + noise * rng.standard_normal(shape),
            "Template": background + neighbour + 0.3 * source + noise / 8 * rng.standard_normal(shape),
            "Difference": (1 - 2 * (i % 2)) * 0.7 * source + 1.1 * noise * rng.standard_normal(shape),
        }
        edge = int(rng.integers(2, 20)) if rng.random() < _EDGE_FRACTION else 0
        for kind, image in images.items():
            image[:, :edge] = np.nan
            stamp = _gzipped_fits(image)
            pool[kind].append(zigzag(len(stamp)) + stamp)
    return pool

"""Products of short vectors for compiled kernels: plain sums in order, whose bits depend on no BLAS."""

import math

from lightcurves.features.numeric import compiled


@compiled
def dot(a, b):
    """Sum of products of two float64 arrays of equal length."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def norm(vector):
    """Euclidean length of a float64 array."""
    return math.sqrt(dot(vector, vector))

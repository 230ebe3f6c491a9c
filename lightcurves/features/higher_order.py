"""Decorator for compiled functions that take compiled functions."""

import numba

# Forced into the caller: else the function handed over stays there as an address, which numba cannot cache on disk.
taking_functions = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)

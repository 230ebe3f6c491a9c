"""Minimum of a function of one variable on an interval, compiled.

Brent's method without derivatives (R. P. Brent, *Algorithms for Minimization without Derivatives*, 1973, chapter 5):
parabolas through the three best points, and golden sections where they do not help. The rules for tolerances and for
points too near to the ends are those of ``scipy.optimize.minimize_scalar(method="bounded")``, so that both visit the
same points: the tests compare them.
"""

import math

from lightcurves.features.higher_order import taking_functions

_GOLDEN = 0.5 * (3.0 - math.sqrt(5.0))
# SciPy's value: the square root of a rounded machine epsilon.
_ROOT_EPSILON = math.sqrt(2.2e-16)


def _minimize_bounded(objective, data, low, high, tolerance, most_evaluations):
    """Find where ``objective(x, data)`` is least for x between two bounds.

    Parameters
    ----------
    objective : compiled function
        From a float and `data` to a float. Comparisons with NaN fail: an objective that is NaN everywhere leaves the
        first point, ``low + 0.38 (high - low)``.
    data : tuple
        What else the objective needs.
    low, high : float
        Bounds, ``low <= high``.
    tolerance : float
        Absolute error of x.
    most_evaluations : int
        Evaluations after which the best point so far is returned.

    Returns
    -------
    tuple of float
        The best x and its value.
    """
    best = second = third = x = low + _GOLDEN * (high - low)
    best_value = second_value = third_value = objective(x, data)
    evaluations = 1
    step = previous_step = 0.0
    while evaluations < most_evaluations:
        middle = 0.5 * (low + high)
        smallest = _ROOT_EPSILON * abs(best) + tolerance / 3.0
        if not abs(best - middle) > 2.0 * smallest - 0.5 * (high - low):
            break
        golden = True
        if abs(previous_step) > smallest:
            r = (best - second) * (best_value - third_value)
            q = (best - third) * (best_value - second_value)
            p = (best - third) * q - (best - second) * r
            q = 2.0 * (q - r)
            if q > 0.0:
                p = -p
            q = abs(q)
            r = previous_step
            previous_step = step
            if abs(p) < abs(0.5 * q * r) and p > q * (low - best) and p < q * (high - best):
                golden = False
                step = p / q
                x = best + step
                if x - low < 2.0 * smallest or high - x < 2.0 * smallest:
                    step = smallest if middle >= best else -smallest
        if golden:
            previous_step = low - best if best >= middle else high - best
            step = _GOLDEN * previous_step
        x = best + (1.0 if step >= 0.0 else -1.0) * max(abs(step), smallest)
        value = objective(x, data)
        evaluations += 1
        if value <= best_value:
            if x >= best:
                low = best
            else:
                high = best
            third, third_value = second, second_value
            second, second_value = best, best_value
            best, best_value = x, value
        else:
            if x < best:
                low = x
            else:
                high = x
            if value <= second_value or second == best:
                third, third_value = second, second_value
                second, second_value = x, value
            elif value <= third_value or third in (best, second):
                third, third_value = x, value
    return best, best_value


minimize_bounded = taking_functions(_minimize_bounded)
# For a minimum within a minimum: numba cannot cache a function that it meets while it is compiling that same function.
minimize_bounded_within = taking_functions(_minimize_bounded)

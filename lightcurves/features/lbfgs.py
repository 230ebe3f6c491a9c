"""Minimum of a smooth function of several variables without bounds, compiled.

Limited-memory BFGS with the line search of Moré and Thuente, as in L-BFGS-B (R. H. Byrd, P. Lu, J. Nocedal, C. Zhu
1995, SIAM J. Sci. Comput. 16, 1190; C. Zhu et al. 1997, ACM TOMS 23, 550; J. L. Morales, J. Nocedal 2011, ACM TOMS 38,
7; J. J. Moré, D. J. Thuente 1994, ACM TOMS 20, 286). Where no variable has a bound, its Cauchy point and subspace step
come down to the quasi-Newton direction, which the two-loop recursion gives (J. Nocedal 1980, Math. Comp. 35, 773).
Constants, stopping rules, restarts and the numerical gradient are those of
``scipy.optimize.minimize(method="L-BFGS-B")`` by default: both visit the same points but for rounding; the tests
compare them.
"""

import math

import numpy as np

from lightcurves.features.higher_order import taking_functions
from lightcurves.features.numeric import compiled
from lightcurves.features.vectors import dot, norm

_MEMORY = 10
_EPSILON = np.finfo(np.float64).eps
_DIFFERENCE_STEP = 1e-8
_VALUE_TOLERANCE = 2.2204460492503131e-09
_GRADIENT_TOLERANCE = 1e-5
_MOST_ITERATIONS = 15000
_MOST_EVALUATIONS = 15000

# Line search: sufficient decrease, curvature, relative width of the bracket, longest step, most evaluations.
_DECREASE, _CURVATURE, _WIDTH = 1e-3, 0.9, 0.1
_LONGEST_STEP = 1e10
_MOST_TRIALS = 20


@taking_functions
def _value_and_gradient(objective, data, x, gradient):
    """Value at x, with the gradient by forward differences; x is left as it was."""
    value = objective(x, data)
    for i in range(len(x)):
        kept = x[i]
        x[i] = kept + _DIFFERENCE_STEP
        step = x[i] - kept
        if step == 0.0:
            x[i] = kept + math.copysign(math.sqrt(_EPSILON), kept) * max(1.0, abs(kept))
            step = x[i] - kept
        gradient[i] = (objective(x, data) - value) / step
        x[i] = kept
    return value


@compiled
def _cubic(from_, to, f_from, f_to, g_from, g_to):
    theta = 3.0 * (f_from - f_to) / (to - from_) + g_from + g_to
    scale = max(abs(theta), max(abs(g_from), abs(g_to)))
    return theta, scale, (theta / scale) ** 2 - (g_from / scale) * (g_to / scale)


@compiled
def _next_trial(best, f_best, g_best, other, f_other, g_other, trial, f, g, bracketed, shortest, longest):
    """Next trial step and updated interval (Moré and Thuente 1994, section 4)."""
    opposite = g * (g_best / abs(g_best)) < 0.0
    theta, scale, discriminant = _cubic(best, trial, f_best, f, g_best, g)
    if f > f_best:
        gamma = scale * math.sqrt(discriminant) if discriminant >= 0.0 else np.nan
        if trial < best:
            gamma = -gamma
        ratio = ((gamma - g_best) + theta) / (((gamma - g_best) + gamma) + g)
        cubic = best + ratio * (trial - best)
        quadratic = best + ((g_best / ((f_best - f) / (trial - best) + g_best)) / 2.0) * (trial - best)
        if abs(cubic - best) < abs(quadratic - best):
            following = cubic
        else:
            following = cubic + (quadratic - cubic) / 2.0
        bracketed = True
    elif opposite:
        gamma = scale * math.sqrt(discriminant) if discriminant >= 0.0 else np.nan
        if trial > best:
            gamma = -gamma
        ratio = ((gamma - g) + theta) / (((gamma - g) + gamma) + g_best)
        cubic = trial + ratio * (best - trial)
        quadratic = trial + (g / (g - g_best)) * (best - trial)
        following = cubic if abs(cubic - trial) > abs(quadratic - trial) else quadratic
        bracketed = True
    elif abs(g) < abs(g_best):
        gamma = scale * math.sqrt(max(0.0, discriminant))
        if trial > best:
            gamma = -gamma
        ratio = ((gamma - g) + theta) / ((gamma + (g_best - g)) + gamma)
        if ratio < 0.0 and gamma != 0.0:
            cubic = trial + ratio * (best - trial)
        else:
            cubic = longest if trial > best else shortest
        quadratic = trial + (g / (g - g_best)) * (best - trial)
        if bracketed:
            following = cubic if abs(cubic - trial) < abs(quadratic - trial) else quadratic
            limit = trial + 0.66 * (other - trial)
            following = min(limit, following) if trial > best else max(limit, following)
        else:
            following = cubic if abs(cubic - trial) > abs(quadratic - trial) else quadratic
            following = max(shortest, min(longest, following))
    elif bracketed:
        theta, scale, discriminant = _cubic(trial, other, f, f_other, g, g_other)
        gamma = scale * math.sqrt(discriminant) if discriminant >= 0.0 else np.nan
        if trial > other:
            gamma = -gamma
        ratio = ((gamma - g) + theta) / (((gamma - g) + gamma) + g_other)
        following = trial + ratio * (other - trial)
    else:
        following = longest if trial > best else shortest
    if f > f_best:
        other, f_other, g_other = trial, f, g
    else:
        if opposite:
            other, f_other, g_other = best, f_best, g_best
        best, f_best, g_best = trial, f, g
    return best, f_best, g_best, other, f_other, g_other, following, bracketed


@taking_functions
def _search_line(objective, data, start, f_start, slope_start, direction, step, x, gradient):
    """Step along a direction of descent (Moré and Thuente 1994, section 3); x and gradient become those of its end.

    Returns whether a step was found, its length, the value there and the slope along the direction.
    """
    slope_needed = _DECREASE * slope_start
    best = other = 0.0
    f_best = f_other = f_start
    g_best = g_other = slope_start
    bracketed, first_stage = False, True
    width, width_before = _LONGEST_STEP, 2.0 * _LONGEST_STEP
    shortest, longest = 0.0, step + 4.0 * step
    for _ in range(_MOST_TRIALS):
        if step == 1.0:
            for i in range(len(x)):
                x[i] = start[i] + direction[i]
        else:
            for i in range(len(x)):
                x[i] = step * direction[i] + start[i]
        f = _value_and_gradient(objective, data, x, gradient)
        g = dot(gradient, direction)
        enough = f_start + step * slope_needed
        if first_stage and f <= enough and g >= 0.0:
            first_stage = False
        rounding = bracketed and (step <= shortest or step >= longest)
        narrow = bracketed and longest - shortest <= _WIDTH * longest
        at_longest = step == _LONGEST_STEP and f <= enough and g <= slope_needed
        at_zero = step == 0.0 and (f > enough or g >= slope_needed)
        good = f <= enough and abs(g) <= _CURVATURE * -slope_start
        if rounding or narrow or at_longest or at_zero or good:
            return True, step, f, g
        if first_stage and f <= f_best and f > enough:
            # The function less the decrease that is asked for has its minimum where the first stage ends.
            best, f_best, g_best, other, f_other, g_other, following, bracketed = _next_trial(
                best,
                f_best - best * slope_needed,
                g_best - slope_needed,
                other,
                f_other - other * slope_needed,
                g_other - slope_needed,
                step,
                f - step * slope_needed,
                g - slope_needed,
                bracketed,
                shortest,
                longest,
            )
            f_best, g_best = f_best + best * slope_needed, g_best + slope_needed
            f_other, g_other = f_other + other * slope_needed, g_other + slope_needed
        else:
            best, f_best, g_best, other, f_other, g_other, following, bracketed = _next_trial(
                best, f_best, g_best, other, f_other, g_other, step, f, g, bracketed, shortest, longest
            )
        if bracketed:
            if abs(other - best) >= 0.66 * width_before:
                following = best + 0.5 * (other - best)
            width_before = width
            width = abs(other - best)
            shortest, longest = min(best, other), max(best, other)
        else:
            shortest = following + 1.1 * (following - best)
            longest = following + 4.0 * (following - best)
        step = min(max(following, 0.0), _LONGEST_STEP)
        if bracketed and (step <= shortest or step >= longest or longest - shortest <= _WIDTH * longest):
            step = best
    return False, step, f_start, slope_start


@compiled
def _quasi_newton(gradient, steps, changes, count, newest, scale, direction):
    """Direction of descent from the remembered steps and changes of the gradient: the two-loop recursion."""
    factors = np.empty(_MEMORY)
    for i in range(len(direction)):
        direction[i] = -gradient[i]
    for back in range(count):
        k = (newest - back) % _MEMORY
        factors[back] = dot(steps[k], direction) / dot(steps[k], changes[k])
        for i in range(len(direction)):
            direction[i] -= factors[back] * changes[k, i]
    for i in range(len(direction)):
        direction[i] /= scale
    for back in range(count - 1, -1, -1):
        k = (newest - back) % _MEMORY
        factor = factors[back] - dot(changes[k], direction) / dot(steps[k], changes[k])
        for i in range(len(direction)):
            direction[i] += factor * steps[k, i]


@taking_functions
def minimize_lbfgs(objective, data, start):
    """Find a minimum of ``objective(x, data)`` from a starting point.

    Parameters
    ----------
    objective : compiled function
        From a float64 array and `data` to a float.
    data : tuple
        What else the objective needs.
    start : float64 array, shape (n,)

    Returns
    -------
    x : float64 array, shape (n,)
        Where the search stopped: gradient below 1e-5, relative decrease below 2.2e-9, or no step found.
    value : float
        The objective there.
    """
    n = len(start)
    x, before, direction = start.copy(), np.empty(n), np.empty(n)
    gradient, gradient_before = np.empty(n), np.empty(n)
    steps, changes = np.zeros((_MEMORY, n)), np.zeros((_MEMORY, n))
    count, newest, scale = 0, -1, 1.0
    value = _value_and_gradient(objective, data, x, gradient)
    evaluations = n + 1
    if np.max(np.abs(gradient)) <= _GRADIENT_TOLERANCE:
        return x, value
    iteration = 0
    while iteration < _MOST_ITERATIONS and evaluations <= _MOST_EVALUATIONS:
        _quasi_newton(gradient, steps, changes, count, newest, scale, direction)
        for i in range(n):
            # L-BFGS-B has the point first and then the direction towards it: its rounding is part of the path.
            direction[i] = (x[i] + direction[i]) - x[i]
        slope_before = dot(gradient, direction)
        for i in range(n):
            before[i], gradient_before[i] = x[i], gradient[i]
        value_before = value
        length = norm(direction)
        step = min(1.0 / length, _LONGEST_STEP) if iteration == 0 else 1.0
        found = False
        if slope_before < 0.0:
            found, step, value, slope = _search_line(
                objective, data, before, value_before, slope_before, direction, step, x, gradient
            )
            evaluations += n + 1
        if not found:
            for i in range(n):
                x[i], gradient[i] = before[i], gradient_before[i]
            value = value_before
            if count == 0:
                break
            count, newest, scale = 0, -1, 1.0
            continue
        iteration += 1
        if np.max(np.abs(gradient)) <= _GRADIENT_TOLERANCE:
            break
        if value_before - value <= _VALUE_TOLERANCE * max(abs(value_before), max(abs(value), 1.0)):
            break
        curvature = (slope - slope_before) * step
        if curvature > _EPSILON * -slope_before * step:
            newest = (newest + 1) % _MEMORY
            count = min(count + 1, _MEMORY)
            for i in range(n):
                steps[newest, i] = step * direction[i]
                changes[newest, i] = gradient[i] - gradient_before[i]
            scale = dot(changes[newest], changes[newest]) / curvature
    return x, value

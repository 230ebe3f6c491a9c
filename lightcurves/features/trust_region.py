"""Bounded nonlinear least squares, compiled.

The trust-region reflective method (M. A. Branch, T. F. Coleman, Y. Li 1999, SIAM J. Sci. Comput. 21, 1; the subproblem
by J. J. Moré 1978, Lecture Notes in Mathematics 630, 105): a Gauss-Newton model in variables scaled by the distance to
the bound ahead, solved exactly within the trust region from a singular value decomposition; of the step shortened at
the bound, its reflection and the steepest descent the best is taken. Constants, stopping rules and the numerical
Jacobian are those of ``scipy.optimize.least_squares(method="trf", tr_solver="exact")`` by default: both visit the same
points but for rounding; the tests compare them.

Instead of the tall matrix its triangular factor is decomposed, by one-sided Jacobi rotations: fast for few variables.
"""

import math

import numpy as np

from lightcurves.features.higher_order import taking_functions
from lightcurves.features.numeric import compiled
from lightcurves.features.vectors import dot, norm

FAILED = -1
OUT_OF_EVALUATIONS = 0

_EPSILON = np.finfo(np.float64).eps
_DIFFERENCE_STEP = math.sqrt(_EPSILON)
_STEP_TOLERANCE = 1e-8
_GRADIENT_TOLERANCE = 1e-8
_START_MARGIN = 1e-10
_MOST_SWEEPS = 30


@taking_functions
def forward_differences(residuals, data, x, low, high, values, jacobian):
    """Jacobian by one-sided differences, backwards where a step forwards would leave the bounds.

    Parameters
    ----------
    residuals : compiled function
        ``residuals(x, data, out)`` fills `out`, shape (m,).
    data : tuple
        What else it needs.
    x, low, high : float64 array, shape (n,)
        Point and bounds; x is left as it was.
    values : float64 array, shape (m,)
        Residuals at x.
    jacobian : float64 array, shape (n, m)
        Filled: the derivatives by variable and residual.
    """
    for k in range(len(x)):
        kept = x[k]
        step = (_DIFFERENCE_STEP if kept >= 0.0 else -_DIFFERENCE_STEP) * max(1.0, abs(kept))
        below, above = kept - low[k], high[k] - kept
        if abs(step) > max(below, above):
            step = above if above >= below else -below
        elif kept + step < low[k] or kept + step > high[k]:
            step = -step
        x[k] = kept + step
        step = x[k] - kept
        residuals(x, data, jacobian[k])
        for i in range(len(values)):
            jacobian[k, i] = (jacobian[k, i] - values[i]) / step
        x[k] = kept


@compiled
def _finite(values):
    return np.all(np.isfinite(values))


@compiled
def _inside(x, step, low, high):
    return np.all((low <= x + step) & (x + step <= high))


@compiled
def _move_inside(x, low, high, margin):
    """Move coordinates that lie on a bound, or within a relative margin of it, to its inner side."""
    for i in range(len(x)):
        below, above = x[i] - low[i], high[i] - x[i]
        if margin == 0.0:
            if x[i] >= high[i]:
                x[i] = np.nextafter(high[i], low[i])
            elif x[i] <= low[i]:
                x[i] = np.nextafter(low[i], high[i])
        elif above <= min(below, margin * max(1.0, abs(high[i]))):
            x[i] = high[i] - margin * max(1.0, abs(high[i]))
        elif below <= min(above, margin * max(1.0, abs(low[i]))):
            x[i] = low[i] + margin * max(1.0, abs(low[i]))
        if x[i] < low[i] or x[i] > high[i]:
            x[i] = 0.5 * (low[i] + high[i])


@compiled
def _triangularise(rows, factor, right):
    """Householder QR of the transpose of `rows`: the triangle into `factor`, the transformed `right` in its place."""
    n, m = rows.shape
    for k in range(n):
        length = 0.0
        for i in range(k, m):
            length += rows[k, i] * rows[k, i]
        length = math.sqrt(length)
        diagonal = -length if rows[k, k] >= 0.0 else length
        factor[k, k] = diagonal
        for j in range(k):
            factor[k, j] = 0.0
        if length == 0.0:
            for j in range(k + 1, n):
                factor[k, j] = rows[j, k]
            continue
        rows[k, k] -= diagonal
        half_square = -diagonal * rows[k, k]
        for j in range(k + 1, n + 1):
            target = right if j == n else rows[j]
            product = 0.0
            for i in range(k, m):
                product += rows[k, i] * target[i]
            product /= half_square
            for i in range(k, m):
                target[i] -= product * rows[k, i]
            if j < n:
                factor[k, j] = target[k]


@compiled
def _singular_values(matrix, left, vectors, values):
    """One-sided Jacobi: ``matrix = left diag(values) vectors^T``, without order; columns of zero values are zero."""
    n = len(values)
    for i in range(n):
        for j in range(n):
            left[i, j] = matrix[i, j]
            vectors[i, j] = 1.0 if i == j else 0.0
    for _ in range(_MOST_SWEEPS):
        rotated = False
        for p in range(n - 1):
            for q in range(p + 1, n):
                pp = qq = pq = 0.0
                for i in range(n):
                    pp += left[i, p] * left[i, p]
                    qq += left[i, q] * left[i, q]
                    pq += left[i, p] * left[i, q]
                if abs(pq) <= _EPSILON * math.sqrt(pp * qq):
                    continue
                rotated = True
                zeta = (qq - pp) / (2.0 * pq)
                tangent = math.copysign(1.0, zeta) / (abs(zeta) + math.hypot(1.0, zeta))
                cosine = 1.0 / math.sqrt(1.0 + tangent * tangent)
                sine = cosine * tangent
                for i in range(n):
                    a, b = left[i, p], left[i, q]
                    left[i, p], left[i, q] = cosine * a - sine * b, sine * a + cosine * b
                    a, b = vectors[i, p], vectors[i, q]
                    vectors[i, p], vectors[i, q] = cosine * a - sine * b, sine * a + cosine * b
        if not rotated:
            break
    for j in range(n):
        square = 0.0
        for i in range(n):
            square += left[i, j] * left[i, j]
        values[j] = math.sqrt(square)
        for i in range(n):
            left[i, j] = left[i, j] / values[j] if values[j] > 0.0 else 0.0


@compiled
def _excess_length(damping, projected, values, radius):
    """Length of the damped step less the radius, and its derivative by the damping."""
    square = slope = 0.0
    for k in range(len(values)):
        denominator = values[k] * values[k] + damping
        ratio = projected[k] / denominator
        square += ratio * ratio
        slope -= ratio * ratio / denominator
    length = math.sqrt(square)
    return length - radius, slope / length


@compiled
def _solve_subproblem(rows, right, values, vectors, radius, damping, step):
    """Step of least modelled cost within the radius; returns the damping that gives it."""
    n = len(values)
    largest, smallest = values.max(), values.min()
    full_rank = rows >= n and smallest > _EPSILON * rows * largest
    projected = values * right
    if full_rank:
        for i in range(n):
            step[i] = 0.0
            for k in range(n):
                step[i] -= vectors[i, k] * (right[k] / values[k])
        if norm(step) <= radius:
            return 0.0
    upper = norm(projected) / radius
    lower = 0.0
    if full_rank:
        excess, slope = _excess_length(0.0, projected, values, radius)
        lower = -excess / slope
    if not full_rank and damping == 0.0:
        damping = max(0.001 * upper, math.sqrt(lower * upper))
    for _ in range(10):
        if damping < lower or damping > upper:
            damping = max(0.001 * upper, math.sqrt(lower * upper))
        excess, slope = _excess_length(damping, projected, values, radius)
        if excess < 0.0:
            upper = damping
        ratio = excess / slope
        lower = max(lower, damping - ratio)
        damping -= (excess + radius) * ratio / radius
        if abs(excess) < 0.01 * radius:
            break
    for i in range(n):
        step[i] = 0.0
        for k in range(n):
            step[i] -= vectors[i, k] * (projected[k] / (values[k] * values[k] + damping))
    shrink = radius / norm(step)
    for i in range(n):
        step[i] *= shrink
    return damping


@compiled
def _stride_to_bound(x, step, low, high):
    """How many times a step fits before it reaches the first bound."""
    least = np.inf
    for i in range(len(x)):
        if step[i] != 0.0:
            least = min(least, max((low[i] - x[i]) / step[i], (high[i] - x[i]) / step[i]))
    return least


@compiled
def _stride_to_radius(start, step, radius):
    """How many times a step fits before it leaves the trust region; NaN if the start lies outside or the step is 0."""
    a, b, c = dot(step, step), dot(start, step), dot(start, start) - radius * radius
    if a == 0.0 or c > 0.0:
        return np.nan
    q = -(b + math.copysign(math.sqrt(b * b - a * c), b))
    return max(q / a, c / q)


@compiled
def _times(factor, vector, product):
    """Upper triangle times vector."""
    n = len(vector)
    for i in range(n):
        total = 0.0
        for j in range(i, n):
            total += factor[i, j] * vector[j]
        product[i] = total


@compiled
def _best_on_segment(a, b, c, low, high):
    """Where ``a t^2 + b t + c`` is least between two ends, and its value."""
    best, value = low, low * (a * low + b) + c
    at_high = high * (a * high + b) + c
    if at_high < value:
        best, value = high, at_high
    if a != 0.0:
        extremum = -0.5 * b / a
        if low < extremum < high:
            at_extremum = extremum * (a * extremum + b) + c
            if at_extremum < value:
                best, value = extremum, at_extremum
    return best, value


@compiled
def _choose_step(x, factor, gradient, scale, radius, low, high, theta, step):
    """Replace a scaled step that leaves the bounds by the best of three; returns the modelled decrease, NaN on failure.

    `factor` holds the triangle of the augmented Jacobian, whose square is the model's Hessian.
    """
    n = len(x)
    image, other_image = np.empty(n), np.empty(n)
    real = scale * step
    if _inside(x, real, low, high):
        _times(factor, step, image)
        return -(0.5 * dot(image, image) + dot(gradient, step))
    stride = _stride_to_bound(x, real, low, high)
    reflected = step.copy()
    for i in range(n):
        if real[i] != 0.0 and max((low[i] - x[i]) / real[i], (high[i] - x[i]) / real[i]) == stride:
            reflected[i] = -reflected[i]
    on_bound = x + real * stride
    for i in range(n):
        step[i] *= stride
    to_radius = _stride_to_radius(step, reflected, radius)
    if math.isnan(to_radius):
        return np.nan
    to_bound = _stride_to_bound(on_bound, scale * reflected, low, high)
    limit = min(to_bound, to_radius)
    reflected_value = np.inf
    if limit > 0.0:
        shortest = (1.0 - theta) * stride / limit
        longest = theta * to_bound if limit == to_bound else to_radius
        if shortest <= longest:
            _times(factor, reflected, image)
            _times(factor, step, other_image)
            a = 0.5 * dot(image, image)
            b = dot(gradient, reflected) + dot(other_image, image)
            c = 0.5 * dot(other_image, other_image) + dot(gradient, step)
            best, reflected_value = _best_on_segment(a, b, c, shortest, longest)
            reflected = reflected * best + step
    for i in range(n):
        step[i] *= theta
    _times(factor, step, image)
    step_value = 0.5 * dot(image, image) + dot(gradient, step)
    descent = -gradient
    to_radius = radius / norm(descent)
    to_bound = _stride_to_bound(x, scale * descent, low, high)
    longest = theta * to_bound if to_bound < to_radius else to_radius
    _times(factor, descent, image)
    best, descent_value = _best_on_segment(0.5 * dot(image, image), dot(gradient, descent), 0.0, 0.0, longest)
    if step_value < reflected_value and step_value < descent_value:
        return -step_value
    if reflected_value < step_value and reflected_value < descent_value:
        for i in range(n):
            step[i] = reflected[i]
        return -reflected_value
    for i in range(n):
        step[i] = descent[i] * best
    return -descent_value


@taking_functions
def fit_bounded(residuals, jacobian_of, data, count, start, low, high, value_tolerance, most_evaluations):
    """Minimise half the sum of squared residuals within bounds.

    Parameters
    ----------
    residuals : compiled function
        ``residuals(x, data, out)`` fills `out`, shape (count,).
    jacobian_of : compiled function
        ``jacobian_of(residuals, data, x, low, high, values, jacobian)``, as `forward_differences`.
    data : tuple
        What else they need.
    count : int
        Number of residuals.
    start, low, high : float64 array, shape (n,)
        Starting point and finite bounds.
    value_tolerance : float
        Relative decrease of the cost below which the search stops.
    most_evaluations : int
        Evaluations (without those of the Jacobian) after which it stops.

    Returns
    -------
    x : float64 array, shape (n,)
        Where the search stopped.
    cost : float
        Half the sum of squares there.
    status : int
        `FAILED` where SciPy raises (start outside the bounds, bounds that leave no room, values that are not finite),
        `OUT_OF_EVALUATIONS`, else positive.
    """
    n = len(start)
    x = start.copy()
    for i in range(n):
        if not (low[i] < high[i] and low[i] <= x[i] <= high[i]):
            return x, np.nan, FAILED
    _move_inside(x, low, high, _START_MARGIN)
    values, new_values = np.empty(count), np.empty(count)
    jacobian = np.empty((n, count))
    augmented, right = np.empty((n, count + n)), np.empty(count + n)
    factor, left, vectors = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    singular, rotated = np.empty(n), np.empty(n)
    gradient, room, direction, scale, step = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    residuals(x, data, values)
    if not _finite(values):
        return x, np.nan, FAILED
    jacobian_of(residuals, data, x, low, high, values, jacobian)
    cost = 0.5 * dot(values, values)
    evaluations = 1
    radius = damping = 0.0
    status = OUT_OF_EVALUATIONS
    first = True
    while True:
        steepest = 0.0
        for i in range(n):
            gradient[i] = dot(jacobian[i], values)
            room[i], direction[i] = 1.0, 0.0
            if gradient[i] < 0.0:
                room[i], direction[i] = high[i] - x[i], -1.0
            elif gradient[i] > 0.0:
                room[i], direction[i] = x[i] - low[i], 1.0
            steepest = max(steepest, abs(gradient[i] * room[i]))
            scale[i] = math.sqrt(room[i])
        if first:
            radius = norm(x / scale)
            radius = 1.0 if radius == 0.0 else radius
            first = False
        if steepest < _GRADIENT_TOLERANCE:
            return x, cost, 1
        if status != OUT_OF_EVALUATIONS or evaluations == most_evaluations:
            return x, cost, status
        for k in range(n):
            for i in range(count):
                augmented[k, i] = jacobian[k, i] * scale[k]
            for i in range(n):
                augmented[k, count + i] = math.sqrt(gradient[k] * direction[k]) if i == k else 0.0
            if not _finite(augmented[k]):
                return x, cost, FAILED
        right[:count] = values
        right[count:] = 0.0
        _triangularise(augmented, factor, right)
        _singular_values(factor, left, vectors, singular)
        for k in range(n):
            rotated[k] = 0.0
            for i in range(n):
                rotated[k] += left[i, k] * right[i]
            gradient[k] *= scale[k]
        theta = max(0.995, 1.0 - steepest)
        reduction = -1.0
        while reduction <= 0.0 and evaluations < most_evaluations:
            damping = _solve_subproblem(count, rotated, singular, vectors, radius, damping, step)
            predicted = _choose_step(x, factor, gradient, scale, radius, low, high, theta, step)
            if math.isnan(predicted):
                return x, cost, FAILED
            new = x + scale * step
            _move_inside(new, low, high, 0.0)
            residuals(new, data, new_values)
            evaluations += 1
            length = norm(step)
            if not _finite(new_values):
                radius = 0.25 * length
                continue
            new_cost = 0.5 * dot(new_values, new_values)
            reduction = cost - new_cost
            ratio = 0.0
            if predicted > 0.0:
                ratio = reduction / predicted
            elif predicted == 0.0 and reduction == 0.0:
                ratio = 1.0
            new_radius = radius
            if ratio < 0.25:
                new_radius = 0.25 * length
            elif ratio > 0.75 and length > 0.95 * radius:
                new_radius = 2.0 * radius
            real_length = norm(scale * step)
            if reduction < value_tolerance * cost and ratio > 0.25:
                status = 2
            if real_length < _STEP_TOLERANCE * (_STEP_TOLERANCE + norm(x)):
                status = 3
            if status != OUT_OF_EVALUATIONS:
                break
            damping *= radius / new_radius
            radius = new_radius
        if reduction > 0.0:
            x = new
            values[:] = new_values
            cost = new_cost
            jacobian_of(residuals, data, x, low, high, values, jacobian)

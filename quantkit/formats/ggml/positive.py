"""The search for the factor of a super-block's scales, which lie side by side in lanes like its weights."""

import numpy as np

from quantkit.formats.ggml.rounding import nearest, nearest_byte
from quantkit.formats.ggml.search import TINY
from quantkit.formats.ggml.vectors import Floats, Vector, inner, larger, load, select, smaller, some, splat, store

F32 = np.float32


@inner
def best_positive_scale(x: Floats, importance: Floats, codes: Floats, top: np.float32) -> Vector:
    """The scale of x = scale * code for the scales of a super-block, as ggml's `make_qp_quants`.

    Args:
        x: [n, LANES] scales, usually not negative.
        importance: [n, LANES].
        codes: [n, LANES], written: as a uint8 keeps them, so beyond `top` where x is negative.
        top: the largest code.

    Returns:
        the scale.
    """
    high = splat(F32(0))
    for i in range(len(codes)):
        high = larger(high, load(x, i))
    nothing = high < TINY
    best_inverse = top / high
    for i in range(len(codes)):
        store(codes, i, nearest_byte(best_inverse * load(x, i)))
    best = _positive_error(x, importance, codes, F32(1) / best_inverse)
    for trial in range(-4, 5):
        if trial == 0:
            continue
        inverse = (F32(0.1) * F32(trial) + top) / high
        for i in range(len(codes)):
            store(codes, i, smaller(nearest(inverse * load(x, i)), top))
        error = _positive_error(x, importance, codes, F32(1) / inverse)
        better = error < best
        best, best_inverse = select(better, error, best), select(better, inverse, best_inverse)
    sum_xl = sum_l2 = splat(F32(0))
    for i in range(len(codes)):
        code = smaller(nearest(best_inverse * load(x, i)), top)
        sum_xl += load(importance, i) * load(x, i) * code
        sum_l2 += load(importance, i) * code * code
        store(codes, i, nearest_byte(code))
    scale = _settle_positive(x, importance, codes, top, sum_xl, sum_l2)
    for i in range(len(codes)):
        store(codes, i, select(nothing, splat(F32(0)), load(codes, i)))
    return select(nothing, splat(F32(0)), scale)


@inner
def _positive_error(x: Floats, importance: Floats, codes: Floats, scale: Vector) -> Vector:
    error = splat(F32(0))
    for i in range(len(codes)):
        miss = load(x, i) - scale * load(codes, i)
        error += load(importance, i) * miss * miss
    return error


@inner
def _settle_positive(
    x: Floats, importance: Floats, codes: Floats, top: np.float32, sum_xl: Vector, sum_l2: Vector
) -> Vector:
    """Up to five times, each code becomes the one that the scale of all others asks for, if that is better."""
    for _ in range(5):
        changes = False
        for i in range(len(codes)):
            value, share, code = load(x, i), load(importance, i), load(codes, i)
            other_xl = sum_xl - share * value * code
            other_l2 = sum_l2 - share * code * code
            new = smaller(nearest(value * other_l2 / other_xl), top)
            new_xl = other_xl + share * value * new
            new_l2 = other_l2 + share * new * new
            better = (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2) & (new != code)
            better = better & (other_xl > F32(0)) & (other_l2 > F32(0))
            store(codes, i, select(better, nearest_byte(new), code))
            sum_xl, sum_l2 = select(better, new_xl, sum_xl), select(better, new_l2, sum_l2)
            changes |= some(better)
        if not changes:
            break
    return select(sum_l2 > F32(0), sum_xl / sum_l2, splat(F32(0)))

"""The searches for a block's scale, over the blocks that lie side by side in lanes.

Each takes and gives what the function of the same purpose in ggml-quants.c does, in the same order of float32
operations, so that the results agree to the last bit: an error that is smaller by rounding alone wins there and here.
Weights and codes are tiles: row i holds the i-th weight of LANES blocks.
"""

from typing import NamedTuple

import numpy as np

from quantkit.formats.ggml.rounding import clamped, nearest, rounded
from quantkit.formats.ggml.vectors import Floats, Vector, inner, larger, load, select, smaller, some, splat, store

F32 = np.float32
TINY = F32(1e-15)  # GROUP_MAX_EPS: what is smaller counts as zero


@inner
def _line_codes(x: Floats, first: int, codes: Floats, inverse: Vector, low: Vector, top: np.float32) -> None:
    """Codes of the line that meets `low` at 0 and rises by one over 1 / inverse."""
    for i in range(len(codes)):
        store(codes, i, rounded(clamped(inverse * (load(x, first + i) - low), F32(0), top)))


@inner
def _line_error(
    x: Floats, first: int, importance: Floats, codes: Floats, scale: Vector, low: Vector, absolute: bool
) -> Vector:
    """The weighted sum of squared, or of absolute, distances between the weights and scale * code + low."""
    error = splat(F32(0))
    for i in range(len(codes)):
        miss = scale * load(codes, i) + low - load(x, first + i)
        error += load(importance, i) * (abs(miss) if absolute else miss * miss)
    return error


@inner
def _fitted_line(
    x: Floats, first: int, importance: Floats, codes: Floats, sum_w: Vector, sum_x: Vector
) -> tuple[Vector, Vector, Vector]:
    """Weighted least squares for the codes: scale and offset, the offset at most 0, and the determinant."""
    sum_l = sum_l2 = sum_xl = splat(F32(0))
    for i in range(len(codes)):
        code = load(codes, i)
        weighted = load(importance, i) * code
        sum_l += weighted
        sum_l2 += weighted * code
        sum_xl += weighted * load(x, first + i)
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    above = low > F32(0)
    return select(above, sum_xl / sum_l2, scale), select(above, splat(F32(0)), low), determinant


class Line(NamedTuple):
    """How a line is searched: 1 + steps inverse scales (top + start + i * step) / (largest - offset)."""

    top: np.float32  # the largest code
    start: np.float32
    step: np.float32
    steps: int
    absolute: bool = False  # whether errors count as they are instead of squared


def weighted_line(bits: int) -> Line:
    """How ggml searches a line of codes of so many bits where columns have an importance."""
    return Line(F32(2**bits - 1), F32(-0.9), F32(0.05), 36)


@inner
def best_line(x: Floats, first: int, importance: Floats, codes: Floats, line: Line) -> tuple[Vector, Vector]:
    """Scale and offset of weight = scale * code + offset, as ggml's `make_qkx2_quants` and `make_qkx3_quants`.

    The offset of a trial that was better is the one that the later trials begin with, which is ggml's order too.

    Args:
        x: a tile of weights; the blocks begin at row `first` and have as many rows as `codes`.
        first: see x.
        importance: [n, LANES], a weight's share in the error.
        codes: [n, LANES], written: the codes of the best trial.
        line: how to search.

    Returns:
        scale and offset, the offset at most 0.
    """
    top = line.top
    low = high = load(x, first)
    sum_w = load(importance, 0)
    sum_x = sum_w * low
    for i in range(1, len(codes)):
        weight, share = load(x, first + i), load(importance, i)
        low, high = smaller(weight, low), larger(weight, high)
        sum_w += share
        sum_x += share * weight
    low = select(low > F32(0), splat(F32(0)), low)
    constant = high <= low
    inverse = top / (high - low)
    scale = F32(1) / inverse
    inverse = select(inverse < F32(np.inf), inverse, splat(F32(0)))  # a range below 1e-37; ggml then finds codes of 0
    best_inverse, best_low = inverse, low  # the grid of the best codes; low itself is then fitted to them
    _line_codes(x, first, codes, inverse, low, top)
    best = _line_error(x, first, importance, codes, scale, low, line.absolute)
    for i in range(line.steps + 1):
        inverse = (line.start + line.step * F32(i) + top) / (high - low)
        _line_codes(x, first, codes, inverse, low, top)
        new_scale, new_low, determinant = _fitted_line(x, first, importance, codes, sum_w, sum_x)
        error = _line_error(x, first, importance, codes, new_scale, new_low, line.absolute)
        better = (determinant > F32(0)) & (error < best)
        best_inverse, best_low = select(better, inverse, best_inverse), select(better, low, best_low)
        best, scale, low = select(better, error, best), select(better, new_scale, scale), select(better, new_low, low)
    zero = splat(F32(0))
    _line_codes(x, first, codes, select(constant, zero, best_inverse), best_low, top)
    return select(constant, zero, scale), low


@inner
def best_scale(x: Floats, first: int, importance: Floats, codes: Floats, half: np.float32) -> Vector:
    """The scale of weight = scale * (code - half), as ggml's `make_qx_quants` with rmse_type 1.

    Tries inverse scales -(half + i / 10) / (the weight of the largest magnitude) for i from -9 to 9.

    Args:
        x: a tile of weights; the blocks begin at row `first` and have as many rows as `codes`.
        first: see x.
        importance: [n, LANES], a weight's share in the error.
        codes: [n, LANES], written: the best codes, from 0 to 2 * half - 1; 0 where all weights are as good as zero.
        half: the code of a zero weight.

    Returns:
        the scale, of either sign.
    """
    size, largest = peak(x, first, len(codes))
    nothing = size < TINY
    inverse = best_inverse = -half / largest
    scale = best = splat(F32(0))
    for i in range(len(codes)):  # a product that every trial needs
        store(codes, i, load(importance, i) * load(x, first + i))
    for trial in range(-10, 10):
        if trial == 0:
            continue
        if trial > -10:
            inverse = -(half + F32(0.1) * F32(trial)) / largest
        top = bottom = splat(F32(0))
        for i in range(len(codes)):
            code = clamped(nearest(inverse * load(x, first + i)), -half, half - F32(1))
            top += load(codes, i) * code
            bottom += load(importance, i) * code * code
        if trial == -10:  # the plain scale; what follows has to be better
            scale = select(bottom != F32(0), top / bottom, splat(F32(0)))
            best = scale * top
        else:
            better = (bottom > F32(0)) & (top * top > best * bottom)
            scale = select(better, top / bottom, scale)
            best = select(better, scale * top, best)
            best_inverse = select(better, inverse, best_inverse)
    for i in range(len(codes)):
        code = half + clamped(nearest(best_inverse * load(x, first + i)), -half, half - F32(1))
        store(codes, i, select(nothing, splat(F32(0)), code))
    return select(nothing, splat(F32(0)), scale)


@inner
def settled_scales(x: Floats, codes: Floats, half: np.float32, sizes: Floats, tops: Floats, scales: Floats) -> None:
    """The scales of weight = scale * (code - half), as ggml's `make_q3_quants`: codes change one at a time.

    Weights count with their squares. Up to five times through a block, a code becomes the one that the scale of all
    others asks for, if that makes the error smaller. The blocks take turns, or each step would wait for
    the one before.

    Args:
        x: a tile of weights, one block after another.
        codes: like x, written: from 0 to 2 * half - 1; 0 where all weights are as good as zero.
        half: the code of a zero weight.
        sizes: [blocks, LANES], for the largest magnitudes.
        tops: [blocks, LANES], for the sums that a scale is the quotient of.
        scales: [blocks, LANES], written.
    """
    blocks, count = len(scales), len(x) // len(scales)
    bottoms = scales  # until the end
    for block in range(blocks):
        first = block * count
        size, largest = peak(x, first, count)
        inverse = -half / largest
        top = bottom = splat(F32(0))
        for i in range(first, first + count):
            weight = load(x, i)
            code = rounded(smaller(inverse * weight, half - F32(1)))  # at least -half, as the largest weight's
            store(codes, i, code)
            square = weight * weight
            top += square * weight * code
            bottom += square * code * code
        store(sizes, block, size)
        store(tops, block, top)
        store(bottoms, block, bottom)
    restless = np.arange(blocks)
    for _ in range(5):
        changed = np.zeros(blocks, np.bool_)
        for i in range(count):
            for k in range(len(restless)):
                block = int(restless[k])
                changed[block] |= _settle(x, codes, block * count + i, half, tops, bottoms, block)
        restless = np.flatnonzero(changed)
    for block in range(blocks):
        nothing, bottom = load(sizes, block) < TINY, load(bottoms, block)
        for i in range(block * count, (block + 1) * count):
            store(codes, i, select(nothing, splat(F32(0)), load(codes, i) + half))
        scale = select(bottom > F32(0), load(tops, block) / bottom, splat(F32(0)))
        store(scales, block, select(nothing, splat(F32(0)), scale))


@inner
def _settle(x: Floats, codes: Floats, i: int, half: np.float32, tops: Floats, bottoms: Floats, block: int) -> bool:
    """Row i of a block takes the code that the scale of the others asks for, where that is better: whether anywhere."""
    weight, code, top, bottom = load(x, i), load(codes, i), load(tops, block), load(bottoms, block)
    square = weight * weight
    other_top = top - square * weight * code
    other_bottom = bottom - square * code * code
    new = rounded(clamped(weight * other_bottom / other_top, -half, half - F32(1)))
    new_top = other_top + square * weight * new
    new_bottom = other_bottom + square * new * new
    better = (new_bottom > F32(0)) & (new_top * new_top * bottom > top * top * new_bottom)
    better = better & (other_top > F32(0)) & (new != code)
    store(codes, i, select(better, new, code))
    store(tops, block, select(better, new_top, top))
    store(bottoms, block, select(better, new_bottom, bottom))
    return bool(some(better))


@inner
def peak(x: Floats, first: int, count: int) -> tuple[Vector, Vector]:
    """The largest magnitude, and the first weight that has it."""
    size = largest = splat(F32(0))
    for i in range(count):
        weight = load(x, first + i)
        beyond = abs(weight) > size
        size, largest = select(beyond, abs(weight), size), select(beyond, weight, largest)
    return size, largest

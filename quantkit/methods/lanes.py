"""Compiled loops of the CPU: rows lie side by side in lanes, so that each column step is vector code.

Every lane keeps the order of float32 operations that a plain loop over its row would have (no fast
math), so the codes do not depend on the number of threads or on the width of the vector unit.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

LANES = 64  # rows of a tile: 128 columns x 64 rows x 4 bytes = 32 KiB, the first-level cache
F32 = np.float32
Floats = NDArray[np.float32]


@njit(inline="always")
def _round_to_half(x: np.float32) -> np.float32:
    """A float32 rounded to the nearest float16 value, still float32 (Veltkamp's splitting).

    What float16 cannot hold becomes its least or its largest magnitude, never zero or infinity.
    """
    size = abs(x)
    if size < F32(2**-14):  # subnormal in float16: a fixed step of 2**-24, the spacing at 0.5
        rounded = max((size + F32(0.5)) - F32(0.5), F32(2**-24)) if size > 0 else F32(0)
    else:
        wide = size * F32(8193)
        rounded = min(wide - (wide - size), F32(65504))
    return rounded if x >= 0 else -rounded


@njit(inline="always")
def _tile(weight: Floats, first: int, lanes: int, start: int, width: int) -> Floats:
    """Rows and columns of a tile with the rows in lanes: [width, LANES], zero beyond the last row."""
    x = np.zeros((width, LANES), np.float32)
    for lane in range(lanes):
        for k in range(width):
            x[k, lane] = weight[first + lane, start + k]
    return x


@njit(inline="always")
def _peaks(x: Floats, width: int) -> tuple[Floats, Floats]:
    """Each lane's largest magnitude, and the weight that has it."""
    peak, signed_peak = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for k in range(width):
        for lane in range(LANES):
            larger = abs(x[k, lane]) > peak[lane]
            signed_peak[lane] = x[k, lane] if larger else signed_peak[lane]
            peak[lane] = abs(x[k, lane]) if larger else peak[lane]
    return peak, signed_peak


@njit(inline="always")
def _invert(scale: Floats, inverse: Floats) -> None:
    """One over each lane's scale, and zero for a scale of zero."""
    for lane in range(LANES):
        inverse[lane] = F32(1) / scale[lane] if scale[lane] != 0 else F32(0)


@njit(inline="always")
def _refine(
    x: Floats, width: int, importance: Floats, start: int, low: np.float32, high: np.float32,
    scale: Floats, inverse: Floats, top: Floats, bottom: Floats,
) -> None:  # fmt: skip
    """Each lane's scale by least squares for the codes that it gives; the last three are scratch."""
    _invert(scale, inverse)
    for lane in range(LANES):
        top[lane] = F32(0)
        bottom[lane] = F32(0)
    for k in range(width):
        h = importance[start + k]
        for lane in range(LANES):
            code = max(low, min(high, np.rint(x[k, lane] * inverse[lane])))
            top[lane] += h * code * x[k, lane]
            bottom[lane] += h * code * code
    for lane in range(LANES):
        wish = top[lane] / bottom[lane] if bottom[lane] > 0 else scale[lane]
        scale[lane] = _round_to_half(wish)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def symmetric_scales(
    weight: Floats,  # [rows, columns]
    importance: Floats,  # [columns]
    divisors: Floats,  # [steps] scales to try: the largest magnitude over these
    refinements: int,
    signed: bool,
    max_code: int,
    group_columns: int,
    scales: Floats,  # [groups, rows], written
) -> None:
    """Per group the scale with the least sum of importance * (weight - rounded)**2, as float16 values."""
    rows, columns = weight.shape
    half = F32((max_code + 1) // 2)
    low, high = -half, half - F32(1)
    groups = scales.shape[0]
    tiles = (rows + LANES - 1) // LANES
    for work in prange(tiles * groups):
        tile, group = work // groups, work % groups
        first, start = tile * LANES, group * group_columns
        lanes, width = min(LANES, rows - first), min(group_columns, columns - start)
        x = _tile(weight, first, lanes, start, width)
        peak, signed_peak = _peaks(x, width)
        best, best_error = np.ones(LANES, np.float32), np.full(LANES, np.inf, np.float32)
        scale, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        top, bottom = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        error = np.empty(LANES, np.float32)
        steps = len(divisors)
        sides = 2 if signed else 1
        for step in range(steps * sides + refinements):
            for lane in range(LANES):
                if step < steps * sides:
                    wish = peak[lane] / divisors[step % steps]
                    # The long side of the grid (-half) goes to the side of the largest weight, or not.
                    negative = (signed_peak[lane] > 0) if step < steps else (signed_peak[lane] <= 0)
                    wish = -wish if signed and negative else wish
                else:  # least squares for the codes that the best scale gives
                    wish = best[lane]
                scale[lane] = _round_to_half(wish)
                error[lane] = F32(0)
            if step >= steps * sides:
                _refine(x, width, importance, start, low, high, scale, inverse, top, bottom)
            _invert(scale, inverse)
            for k in range(width):
                h = importance[start + k]
                for lane in range(LANES):
                    code = max(low, min(high, np.rint(x[k, lane] * inverse[lane])))
                    e = x[k, lane] - code * scale[lane]
                    error[lane] += h * e * e
            for lane in range(LANES):
                better = (error[lane] < best_error[lane]) and (scale[lane] != 0)
                best_error[lane] = error[lane] if better else best_error[lane]
                best[lane] = scale[lane] if better else best[lane]
        for lane in range(lanes):
            scales[group, first + lane] = best[lane]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def asymmetric_scales(
    weight: Floats,  # [rows, columns]
    importance: Floats,  # [columns]
    shrink: Floats,  # [steps] fractions of the group's range that the grid spans
    max_code: int,
    group_columns: int,
    scales: Floats,  # [groups, rows], written
    zeros: Floats,  # [groups, rows], written: whole numbers in [0, max_code]
) -> None:
    """Per group the scale and zero point with the least importance-weighted squared error."""
    rows, columns = weight.shape
    groups = scales.shape[0]
    tiles = (rows + LANES - 1) // LANES
    top = F32(max_code)
    for work in prange(tiles * groups):
        tile, group = work // groups, work % groups
        first, start = tile * LANES, group * group_columns
        lanes, width = min(LANES, rows - first), min(group_columns, columns - start)
        x = _tile(weight, first, lanes, start, width)
        least, most = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        for k in range(width):
            for lane in range(LANES):
                least[lane] = min(least[lane], x[k, lane])
                most[lane] = max(most[lane], x[k, lane])
        best, best_zero = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
        best_error = np.full(LANES, np.inf, np.float32)
        scale, zero = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverse, error = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        # Each range is tried with three zero points: rounding moves the grid by half a step.
        for step in range(len(shrink) * 3):
            for lane in range(LANES):
                s = _round_to_half(shrink[step // 3] * (most[lane] - least[lane]) / top)
                scale[lane] = s
                inverse[lane] = F32(1) / s if s != 0 else F32(0)
                z = np.rint(-shrink[step // 3] * least[lane] * inverse[lane]) + F32(step % 3 - 1)
                zero[lane] = max(F32(0), min(top, z))
                error[lane] = F32(0)
            for k in range(width):
                h = importance[start + k]
                for lane in range(LANES):
                    code = max(F32(0), min(top, np.rint(x[k, lane] * inverse[lane]) + zero[lane]))
                    e = x[k, lane] - (code - zero[lane]) * scale[lane]
                    error[lane] += h * e * e
            for lane in range(LANES):
                better = (error[lane] < best_error[lane]) and (scale[lane] != 0)
                best_error[lane] = error[lane] if better else best_error[lane]
                best[lane] = scale[lane] if better else best[lane]
                best_zero[lane] = zero[lane] if better else best_zero[lane]
        for lane in range(lanes):
            scales[group, first + lane] = best[lane]
            zeros[group, first + lane] = best_zero[lane]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def round_columns(
    weight: Floats,  # [rows, in], columns in natural order
    feedback: Floats,  # [rows, width] what earlier column blocks add to these columns
    columns: NDArray[np.int64],  # [width] which columns of the weight these are
    upper: Floats,  # [width, width] this block of the unit upper factor A
    pivots: Floats,  # [width] this part of the diagonal D
    group_of_column: NDArray[np.int64],  # [width]
    scales: Floats,  # [groups, rows]
    zeros: Floats,  # [groups, rows]
    max_code: int,
    errors: Floats,  # [rows, width], written: weight - quantized
    codes: NDArray[np.uint8],  # [rows, in], written at `columns`
    loss: NDArray[np.float64],  # [rows], added to
) -> None:
    """One column block of GPTQ: each column is rounded after the feedback of those before it.

    With H = A D A^T the error of a row is sum_k D_k (v_k - q_k)**2, where v_k is the target of
    column k (QuIP, Chee et al. 2023, section 3).
    """
    rows, width = feedback.shape
    top = F32(max_code)
    tiles = (rows + LANES - 1) // LANES
    for tile in prange(tiles):
        first = tile * LANES
        lanes = min(LANES, rows - first)
        v = np.zeros((width, LANES), np.float32)
        original = np.zeros((width, LANES), np.float32)
        chosen = np.zeros((width, LANES), np.float32)
        row_loss = np.zeros(LANES, np.float64)
        inverse, error = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        scale, zero = np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
        for lane in range(lanes):
            for k in range(width):
                original[k, lane] = weight[first + lane, columns[k]]
                v[k, lane] = original[k, lane] + feedback[first + lane, k]
        for k in range(width):
            group = group_of_column[k]
            for lane in range(lanes):
                scale[lane] = scales[group, first + lane]
                zero[lane] = zeros[group, first + lane]
            for lane in range(LANES):
                inverse[lane] = F32(1) / scale[lane]
                code = max(F32(0), min(top, np.rint(v[k, lane] * inverse[lane]) + zero[lane]))
                value = (code - zero[lane]) * scale[lane]
                miss = v[k, lane] - value
                row_loss[lane] += np.float64(pivots[k] * miss * miss)
                error[lane] = original[k, lane] - value
                original[k, lane] = error[lane]
                chosen[k, lane] = code
            for j in range(k + 1, width):
                a = upper[k, j]
                for lane in range(LANES):
                    v[j, lane] += error[lane] * a
        for lane in range(lanes):
            for k in range(width):
                errors[first + lane, k] = original[k, lane]
                codes[first + lane, columns[k]] = np.uint8(chosen[k, lane])
            loss[first + lane] += row_loss[lane]

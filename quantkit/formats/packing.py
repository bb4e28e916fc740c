"""Packs small integers of 2, 3, 4 or 8 bits into 32-bit words the way GPTQ files do, and unpacks them.

Along the packed axis, 32 consecutive values fill `bits` words: value i takes bits [i * bits, (i + 1) * bits)
of a little-endian stream. The kernels take 8 codes at a time as one 64-bit number, with one code per byte,
and close the gaps between them in three steps (8 -> 16 -> 32 -> 64 bits):

    0000dcba 0000hgfe ...  ->  00000000 hgfedcba ...      (4 bits, the first step; letters are bits)

Matrices are walked in tiles that fit the first-level cache, so the transposition costs no extra pass.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, cast

import numba
import numpy as np
import numpy.typing as npt
import torch

_Words: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
_Kernel: TypeAlias = Callable[[_Words, _Words, int, int], None]  # source, target, first row, end

_TILE_ROWS = 64  # out_features of one tile: a write is 256 contiguous bytes
_TILE_CHUNKS = 8  # chunks of 32 codes of one tile: a read is 256 contiguous bytes
_ROWS_PER_TASK = 128


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs along in_features and transposes, as `qweight` wants it.

    Bits of a code above `bits` are dropped, so a bad code cannot reach its neighbours.

    Args:
        codes: [out_features, in_features] uint8 on the CPU; in_features divisible by 32.
        bits: 2, 3, 4 or 8.

    Returns:
        [in_features * bits / 32, out_features] int32.

    Raises:
        ValueError: the type, shape or bits do not fit.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[1] % 32:
        raise ValueError(f"expected uint8 [rows, a multiple of 32], found {codes.dtype} {list(codes.shape)}")
    rows, columns = codes.shape
    words = torch.empty(columns // 32 * bits, rows, dtype=torch.int32)
    eights = codes.contiguous().numpy().view(np.uint64)  # [rows, columns / 8]
    _in_threads(_packer(bits), eights, words.numpy().view(np.uint32), rows)
    return words


def unpack_rows(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_rows`.

    Args:
        words: [in_features * bits / 32, out_features] int32 on the CPU.
        bits: 2, 3, 4 or 8.

    Returns:
        [out_features, in_features] uint8.

    Raises:
        ValueError: the type, shape or bits do not fit.
    """
    _check_bits(bits)
    if words.dtype != torch.int32 or words.dim() != 2 or words.shape[0] % bits:
        raise ValueError(f"expected int32 [a multiple of {bits}, rows], found {words.dtype} {list(words.shape)}")
    rows = words.shape[1]
    codes = torch.empty(rows, words.shape[0] // bits * 32, dtype=torch.uint8)
    eights = codes.numpy().view(np.uint64)  # [rows, columns / 8]
    _in_threads(_unpacker(bits), words.contiguous().numpy().view(np.uint32), eights, rows)
    return codes


def pack_columns(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs along out_features without transposing, as `qzeros` wants it.

    Args:
        values: [groups, out_features] uint8 on the CPU; out_features divisible by 32.
        bits: 2, 3, 4 or 8.

    Returns:
        [groups, out_features * bits / 32] int32.

    Raises:
        ValueError: the type, shape or bits do not fit.
    """
    return pack_rows(values, bits).T.contiguous()


def unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_columns`.

    Args:
        words: [groups, out_features * bits / 32] int32 on the CPU.
        bits: 2, 3, 4 or 8.

    Returns:
        [groups, out_features] uint8.

    Raises:
        ValueError: the type, shape or bits do not fit.
    """
    return unpack_rows(words.T, bits)


def _check_bits(bits: int) -> None:
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"bits must be 2, 3, 4 or 8, not {bits}")


def _in_threads(kernel: _Kernel, source: _Words, target: _Words, rows: int) -> None:
    """Runs a kernel over ranges of rows.

    Plain threads, not numba's parallel loops: depending on the threading layer that numba finds, those abort
    the process when two threads meet there or after a fork.
    """
    starts = range(0, rows, _ROWS_PER_TASK)
    workers = min(torch.get_num_threads(), len(starts))
    if workers <= 1:
        kernel(source, target, 0, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(kernel, source, target, start, min(start + _ROWS_PER_TASK, rows)) for start in starts]
        for task in tasks:
            task.result()


def _gap_masks(bits: int) -> list[np.uint64]:
    """Masks that keep 1, 2, 4 and 8 adjacent codes in every 8, 16, 32 and 64 bits."""
    masks = []
    for together in (1, 2, 4, 8):
        keep = (1 << bits * together) - 1
        masks.append(np.uint64(sum(keep << shift for shift in range(0, 64, 8 * together))))
    return masks


@functools.cache
def _packer(bits: int) -> _Kernel:
    """Compiles eights [rows, columns / 8] uint64 -> words [columns / 32 * bits, rows] uint32.

    One function per width: with `bits` a constant, all divisions and shifts below are too.
    """
    mask1, mask2, mask4, mask8 = _gap_masks(bits)
    gap, gap2, gap4 = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    width = 8 * bits  # bits of 8 packed codes

    @numba.njit(cache=True, nogil=True)
    def pack(eights: _Words, words: _Words, first: int, last: int) -> None:
        packed = np.zeros(4 * _TILE_CHUNKS + 1, np.uint64)  # 8 codes each, at the bottom; one to look ahead
        tile = np.empty((_TILE_ROWS, bits * _TILE_CHUNKS + 1), np.uint32)  # an odd stride spares the cache
        for chunk_start in range(0, eights.shape[1] // 4, _TILE_CHUNKS):
            for row_start in range(first, last, _TILE_ROWS):
                rows = min(_TILE_ROWS, last - row_start)
                for row in range(rows):
                    source = eights[row_start + row, 4 * chunk_start : 4 * (chunk_start + _TILE_CHUNKS)]
                    for i in range(len(source)):
                        eight = source[i] & mask1
                        eight = (eight | eight >> gap) & mask2
                        eight = (eight | eight >> gap2) & mask4
                        packed[i] = (eight | eight >> gap4) & mask8
                    for chunk in range(len(source) // 4):
                        for word in range(bits):
                            i = 32 * word // width
                            skip = 32 * word - width * i  # bits of packed[i] that the word before has
                            room = min(width - skip, 63)  # from 32 on, the next one adds nothing here
                            here, after = packed[4 * chunk + i], packed[4 * chunk + i + 1]
                            both = here >> np.uint64(skip) | after << np.uint64(room)
                            tile[row, chunk * bits + word] = np.uint32(both)
                for word in range(min(_TILE_CHUNKS * bits, len(words) - chunk_start * bits)):
                    target = words[chunk_start * bits + word, row_start : row_start + rows]
                    for row in range(rows):
                        target[row] = tile[row, word]

    return cast("_Kernel", pack)


@functools.cache
def _unpacker(bits: int) -> _Kernel:
    """Compiles words [columns / 32 * bits, rows] uint32 -> eights [rows, columns / 8] uint64."""
    mask1, mask2, mask4, mask8 = _gap_masks(bits)
    gap, gap2, gap4 = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    width = 8 * bits  # bits of 8 packed codes

    @numba.njit(cache=True, nogil=True)
    def unpack(words: _Words, eights: _Words, first: int, last: int) -> None:
        tile = np.zeros((_TILE_ROWS, bits * _TILE_CHUNKS + 1), np.uint32)  # one to look ahead
        for chunk_start in range(0, eights.shape[1] // 4, _TILE_CHUNKS):
            for row_start in range(first, last, _TILE_ROWS):
                rows = min(_TILE_ROWS, last - row_start)
                for word in range(min(_TILE_CHUNKS * bits, len(words) - chunk_start * bits)):
                    source = words[chunk_start * bits + word, row_start : row_start + rows]
                    for row in range(rows):
                        tile[row, word] = source[row]
                for row in range(rows):
                    target = eights[row_start + row, 4 * chunk_start : 4 * (chunk_start + _TILE_CHUNKS)]
                    for i in range(len(target)):
                        word = width * i // 32
                        two = np.uint64(tile[row, word]) | np.uint64(tile[row, word + 1]) << np.uint64(32)
                        eight = two >> np.uint64(width * i - 32 * word) & mask8
                        eight = (eight | eight << gap4) & mask4
                        eight = (eight | eight << gap2) & mask2
                        target[i] = (eight | eight << gap) & mask1

    return cast("_Kernel", unpack)

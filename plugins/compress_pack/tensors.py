"""One tensor: zeros apart or not, then its values in the cheapest of a few ways.

    positions   none, by rows, by columns
    values      planes: the bytes of each number, most significant first, each constant, coded or raw
                table: the different numbers, and for each value its place in the table
                grid: a float s and for each value the integer k of float32(k) * s
                kernels: of int8 convolutions, each value by the size of those around it

Floats are rotated so that the exponent fills the first byte; signed integers are shifted or folded so that small ones
have small bytes. A value is a pattern of bits: -0.0 and every NaN come back as they were.

Source: byte planes as in the shuffle filter of HDF5; tables and grids as in Han et al. 2016, "Deep Compression",
sec. 3. Cost: 40 to 150 ns a value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compress_pack.kernels import code_kernels, has_kernels
from compress_pack.neighbours import MOST, code_near
from compress_pack.positions import Mask, code_positions, view_shape
from compress_pack.sequences import LARGEST, code_sequence
from compress_pack.streams import Coder, DamagedError, Ints, Price, Words

ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""The number formats by the names of safetensors, with the bytes of a number."""

PLANES, TABLE, GRID, KERNELS = range(4)
WAYS = (PLANES, TABLE, GRID)
"""Of coding a sequence of values; `KERNELS` codes a whole dense tensor."""
DENSE, BY_ROWS, BY_COLUMNS = range(3)
CONSTANT, RAW, CODED = range(3)
_SAMPLE = 1 << 16
"""Bytes by which a plane is judged."""
_LONGEST = 2000
"""The largest integer of a grid."""


def code_tensor(coder: Coder, dtype: str, shape: tuple[int, ...], values: Words | None) -> Words:
    """Code a tensor as unsigned integers of its width; flat."""
    layout = way = 0
    if values is not None:
        layout, way = _cheapest(coder, dtype, shape, values)
    layout, way = coder.number(3, layout), coder.number(KERNELS + 1, way)
    if way == KERNELS:
        return code_kernels(coder, dtype, shape, values)
    return _code(coder, dtype, shape, values, layout=layout, way=way)


def _cheapest(coder: Coder, dtype: str, shape: tuple[int, ...], values: Words) -> tuple[int, int]:
    """The layout and the way that cost least."""
    known: dict[tuple[int, int], float] = {}
    positions = {layout: _price_of_positions(coder, shape, values, layout) for layout in _layouts(shape, values)}
    layouts = [DENSE, *([min(positions, key=positions.__getitem__)] if positions else [])]
    for layout in layouts:
        mask, inner = None, values
        if layout != DENSE:
            matrix = _matrix(values, shape, layout)
            mask = matrix != 0
            inner = matrix[mask]
        for way in WAYS:
            if _fits(way, dtype, inner):
                price = Price(coder.memory)
                _CODES[way](price, dtype, len(inner), inner, mask)
                known[layout, way] = price.total + positions.get(layout, 0.0)
    if has_kernels(dtype, shape):
        price = Price(coder.memory)
        code_kernels(price, dtype, shape, values)
        known[DENSE, KERNELS] = price.total
    return min(known, key=known.__getitem__)


def _price_of_positions(coder: Coder, shape: tuple[int, ...], values: Words, layout: int) -> float:
    price = Price(coder.memory)
    _code_layout(price, shape, values, layout)
    return price.total


def _layouts(shape: tuple[int, ...], values: Words) -> tuple[int, ...]:
    """The layouts to try beside the dense one: zeros are set apart if they are an eighth of the values."""
    zeros = len(values) - np.count_nonzero(values)
    if zeros < 8 or 8 * zeros < len(values):
        return ()
    return (BY_ROWS, BY_COLUMNS)


def _code(coder: Coder, dtype: str, shape: tuple[int, ...], values: Words | None, *, layout: int, way: int) -> Words:
    count = int(np.prod(shape, dtype=np.int64))
    if layout == DENSE:
        return _CODES[way](coder, dtype, count, values, None)
    mask, matrix = _code_layout(coder, shape, values, layout)
    inner = _CODES[way](coder, dtype, int(np.count_nonzero(mask)), None if matrix is None else matrix[mask], mask)
    return _placed(mask, inner, layout, count)


def _code_layout(coder: Coder, shape: tuple[int, ...], values: Words | None, layout: int) -> tuple[Mask, Words | None]:
    """Code the positions; they, and the values as the matrix that they are of."""
    rows, columns = view_shape(shape)
    if layout == BY_COLUMNS:
        rows, columns = columns, rows
    matrix = None if values is None else _matrix(values, shape, layout)
    return code_positions(coder, rows, columns, None if matrix is None else matrix != 0), matrix


def _matrix(values: Words, shape: tuple[int, ...], layout: int) -> Words:
    """The values as the matrix of a layout, with zeros where it reaches beyond the tensor."""
    rows, columns = view_shape(shape)
    beyond = np.zeros(rows * columns - len(values), values.dtype)
    matrix = (np.concatenate([values, beyond]) if len(beyond) else values).reshape(rows, columns)
    return matrix.T if layout == BY_COLUMNS else matrix


def _placed(mask: Mask, inner: Words, layout: int, count: int) -> Words:
    """The values where the mask is, zeros elsewhere, flat and in the tensor's order."""
    if layout == BY_COLUMNS:
        found = np.zeros(mask.shape[::-1], inner.dtype)
        found.T[mask] = inner
    else:
        found = np.zeros(mask.shape, inner.dtype)
        found[mask] = inner
    return found.ravel()[:count]


def _fits(way: int, dtype: str, values: Words) -> bool:
    match way:
        case 0:
            return True
        case 1:
            return len(values) > 0 and len(np.unique(values[:LARGEST])) < LARGEST and _table(values) is not None
        case _:
            return dtype == "F32" and _grid(values) is not None


def _code_planes(coder: Coder, dtype: str, count: int, values: Words | None, mask: Mask | None) -> Words:
    size = ITEM_SIZES[dtype]
    planes = None if values is None else _bytes_of(_levelled(values, dtype), size)
    found = np.empty((count, size), np.uint8)
    for place in reversed(range(size)):
        _code_plane(coder, f"{dtype} {place}", None if planes is None else planes[:, place], found[:, place])
    return _level_back(np.ascontiguousarray(found).view(f"<u{size}").ravel(), dtype)


def _bytes_of(values: Words, size: int) -> Words:
    return np.ascontiguousarray(values.astype(f"<u{size}")).view(np.uint8).reshape(-1, size)


def _code_plane(coder: Coder, kind: str, plane: Words | None, found: Words) -> None:
    """Code one byte of each value into `found`."""
    count = len(found)
    form = 0 if plane is None else _form(coder, kind, plane)
    form = coder.number(3, form)
    if form == RAW:
        found[:] = np.frombuffer(coder.raw(count, None if plane is None else plane.tobytes()), np.uint8)
    elif form == CODED:
        found[:] = code_sequence(coder, kind, 256, count, plane)
    else:
        found[:] = coder.number(256, int(plane[0]) if plane is not None and count else 0)


def _form(coder: Coder, kind: str, plane: Words) -> int:
    if len(plane) == 0 or (plane == plane[0]).all():
        return CONSTANT
    sample = plane[:_SAMPLE]
    price = Price(coder.memory)
    code_sequence(price, kind, 256, len(sample), sample)
    return CODED if price.total < 7.95 * len(sample) else RAW


def _levelled(values: Words, dtype: str) -> Words:
    """The same numbers with what is alike in their first bytes."""
    bits = 8 * values.dtype.itemsize
    one, last = values.dtype.type(1), values.dtype.type(bits - 1)
    found = values
    if dtype == "I8":
        found = values ^ values.dtype.type(128)
    elif dtype[0] == "I":
        found = (values << one) ^ ((values >> last) * values.dtype.type(2**bits - 1))
    elif dtype[0] in "FB" and dtype != "BOOL":
        found = (values << one) | (values >> last)
    return found


def _level_back(values: Words, dtype: str) -> Words:
    bits = 8 * values.dtype.itemsize
    one, last = values.dtype.type(1), values.dtype.type(bits - 1)
    found = values
    if dtype == "I8":
        found = values ^ values.dtype.type(128)
    elif dtype[0] == "I":
        found = (values >> one) ^ ((values & one) * values.dtype.type(2**bits - 1))
    elif dtype[0] in "FB" and dtype != "BOOL":
        found = (values >> one) | (values << last)
    return found


def _code_places(coder: Coder, levels: Ints, count: int, values: Words | None, mask: Mask | None) -> Words:
    """Code places in a table or on a grid, by what lies around them if that is cheaper."""
    limit, near = len(levels), 0
    kind = f"places {limit}"
    if mask is None or not count:
        return code_sequence(coder, kind, limit, count, values)
    if values is not None and int(values.max()) - int(values.min()) < MOST:
        one, other = Price(coder.memory), Price(coder.memory)
        code_near(one, levels, mask, values)
        code_sequence(other, kind, limit, count, values)
        near = int(one.total < other.total)
    if coder.number(2, near):
        return code_near(coder, levels, mask, values)
    return code_sequence(coder, kind, limit, count, values)


def _code_table(coder: Coder, dtype: str, count: int, values: Words | None, mask: Mask | None) -> Words:
    size = ITEM_SIZES[dtype]
    table = None if values is None else _table(values)
    entries = coder.number(LARGEST, 0 if table is None else len(table) - 1) + 1
    held = coder.raw(size * entries, None if table is None else table.astype(f"<u{size}").tobytes())
    known: Words = np.frombuffer(held, f"<u{size}").astype(f"u{size}")
    places = None if values is None else _places(known, values)
    levels = np.arange(entries) - int(np.count_nonzero(known >> (8 * size - 1)))
    return known[_code_places(coder, levels + (levels >= 0), count, places, mask)]


def _table(values: Words) -> Words | None:
    """The different values in the order of the numbers they are; None if there are too many, or none."""
    found = np.unique(values)
    if not 0 < len(found) <= LARGEST:
        return None
    half = 1 << (8 * found.dtype.itemsize - 1)
    negative = found >= half
    return np.concatenate([found[negative][::-1], found[~negative]])


def _places(table: Words, values: Words) -> Words:
    order = np.argsort(table)
    found: Words = order[np.searchsorted(table[order], values)].astype(np.uint16)
    return found


def _code_grid(coder: Coder, dtype: str, count: int, values: Words | None, mask: Mask | None) -> Words:
    grid = None if values is None else _grid(values)
    held = coder.raw(4, None if grid is None else grid[0].astype("<f4").tobytes())
    step = np.frombuffer(held, "<f4").astype(np.float32)[0]
    shifted = None if grid is None else (grid[1] + _LONGEST).astype(np.uint16)
    found = _code_places(coder, np.arange(LARGEST) - _LONGEST, count, shifted, mask)
    if dtype != "F32" or not np.isfinite(step):
        raise DamagedError("it has a grid where there can be none")
    with np.errstate(all="ignore"):
        numbers: Words = (found.astype(np.float32) - np.float32(_LONGEST)) * step
        return numbers.view(np.uint32)


def _grid(values: Words) -> tuple[Words, Words] | None:
    """The step and the integers of which every value is a product, bit for bit; None if there are none."""
    numbers = np.unique(values).view(np.float32)
    if not 1 < len(numbers) < 2 * _LONGEST or not np.isfinite(numbers).all():
        return None
    sizes = np.unique(np.abs(numbers[numbers != 0]))
    if len(sizes) == 0:
        return None
    for divisor in (1, 2, 3):
        step = np.asarray(sizes[0] / np.float32(divisor), np.float32)
        if not sizes[-1] <= step * np.float32(_LONGEST):
            continue
        whole = np.rint(values.view(np.float32) / step) + np.float32(0)
        if np.array_equal((whole * step).view(np.uint32), values):
            return step, whole.astype(np.int64)
    return None


_CODES: tuple[Callable[[Coder, str, int, Words | None, Mask | None], Words], ...] = (
    _code_planes,
    _code_table,
    _code_grid,
)

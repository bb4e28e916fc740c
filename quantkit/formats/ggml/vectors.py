"""Sixteen float32 side by side as one value of compiled code, so that a search over blocks reads like plain arithmetic.

    @njit
    def error(x, w, scale):                    # x, w: [n, LANES] float32 arrays; scale: a vector
        total = splat(0)
        for i in range(len(x)):
            miss = load(x, i) - scale * nearest(load(x, i) / scale)
            total += load(w, i) * miss * miss
        return total

Every lane does the float32 operations of a plain loop in their order: nothing is fused or reassociated, so a lane
gets what C gets when compiled without `-ffast-math` and `-mfma`. LLVM splits a vector into the registers that the
machine has. Plain numbers are widened to vectors of float32. A comparison gives a mask, for `select`, `&`, `some`.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import Signature
from numba.extending import lower_builtin, lower_cast, models, register_model, type_callable
from numpy.typing import NDArray

LANES = 16
F = TypeVar("F", bound=Callable[..., object])
Floats = NDArray[np.float32]
Vector = Any  # in annotations of compiled functions
Mask = Any
Number = Any  # float32 or bool, of such
Context = Any  # numba's

FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


def inner(function: F) -> F:
    """Compiles what only compiled code calls: without an entry from Python, which would take longer than the rest."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, njit(nogil=True, error_model="numpy", **options)(function))


class _Kind(types.Type):
    """The numba type of a vector or of a mask."""

    def can_convert_from(self, _context: Context, other: types.Type) -> Conversion | None:
        """Numbers become vectors."""
        return Conversion.safe if self is VECTOR and isinstance(other, types.Integer | types.Float) else None


VECTOR, MASK = _Kind("quantkit.Vector"), _Kind("quantkit.Mask")


@register_model(_Kind)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Context, kind: _Kind) -> None:
        super().__init__(manager, kind, FLOATS if kind is VECTOR else _BITS)  # type: ignore[no-untyped-call]


def splat(number: float | np.float32) -> Vector:
    """A vector of the same number in every lane."""


def load(rows: Floats, index: int) -> Vector:
    """Row `index` of a contiguous [n, LANES] array."""


def store(rows: Floats, index: int, vector: Vector) -> None:
    """Writes row `index` of a contiguous [n, LANES] array."""


def select(mask: Mask, yes: Vector, no: Vector) -> Vector:
    """Per lane the one or the other."""


def some(mask: Mask) -> Number:
    """Whether any lane of a mask is true."""


def highest(vector: Vector) -> Number:
    """The largest of the lanes."""


def root(vector: Vector) -> Vector:
    """Square roots."""


def larger(a: Vector, b: Vector) -> Vector:
    """Per lane `a > b ? a : b`."""


def smaller(a: Vector, b: Vector) -> Vector:
    """Per lane `a < b ? a : b`."""


def tile(rows: int) -> Floats:
    """An array [rows, LANES] whose rows fill cache lines."""
    space = np.empty((rows + 1) * LANES, np.float32)
    skipped = -space.ctypes.data // 4 % LANES
    return space[skipped : skipped + rows * LANES].reshape(rows, LANES)


def _widened(_context: Context, builder: ir.IRBuilder, given: types.Type, _to: types.Type, value: ir.Value) -> ir.Value:
    if isinstance(given, types.Integer):
        value = builder.sitofp(value, ir.FloatType())
    elif given != types.float32:
        value = builder.fptrunc(value, ir.FloatType())
    unset = ir.Constant(FLOATS, ir.Undefined)
    one = builder.insert_element(unset, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, unset, constant(INTS, 0))


lower_cast(types.Integer, VECTOR)(_widened)  # type: ignore[no-untyped-call]
lower_cast(types.Float, VECTOR)(_widened)  # type: ignore[no-untyped-call]


def define(
    function: Callable[..., object], wanted: tuple[types.Type, ...], result: types.Type, code: Callable[..., ir.Value]
) -> None:
    """Gives a function or an operator of compiled code the instructions that `code(builder, *values)` writes.

    Args:
        function: what compiled code calls; its own body is never run.
        wanted: numba types of the arguments; of an array `code` gets the address of the first item.
        result: numba type of the result.
        code: writes LLVM instructions and returns the value.
    """

    def signature(*found: types.Type) -> Signature | None:
        return result(*wanted) if all(map(_fits, found, wanted)) else None

    def typing(_context: Context) -> Callable[..., Signature | None]:
        arities = (
            lambda a: signature(a),
            lambda a, b: signature(a, b),
            lambda a, b, c: signature(a, b, c),
            lambda a, b, c, d: signature(a, b, c, d),
            lambda a, b, c, d, e: signature(a, b, c, d, e),
        )
        return arities[len(wanted) - 1]

    def lowered(context: Context, builder: ir.IRBuilder, call: Context, values: tuple[ir.Value, ...]) -> ir.Value:
        given = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(call.args, values, strict=True)
        ]
        return code(builder, *given)

    type_callable(function)(typing)
    lower_builtin(function, *wanted)(lowered)  # type: ignore[no-untyped-call]


def _fits(found: types.Type, wanted: types.Type) -> bool:
    if wanted is VECTOR:
        return found is VECTOR or isinstance(found, types.Integer | types.Float)
    return bool(found == wanted) or (wanted == types.intp and isinstance(found, types.Integer))


def constant(kind: ir.VectorType, number: float) -> ir.Constant:
    """A vector in LLVM code with the same number in every lane."""
    return ir.Constant(kind, [number] * LANES)


def address(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Where row `index` of an [n, LANES] array begins, in LLVM code."""
    start = builder.gep(data, [builder.mul(index, ir.Constant(index.type, LANES))])
    return builder.bitcast(start, kind.as_pointer())


def _load(builder: ir.IRBuilder, data: ir.Value, index: ir.Value) -> ir.Value:
    return builder.load(address(builder, data, index, FLOATS), align=4)


def _store(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, vector: ir.Value) -> ir.Value:
    builder.store(vector, address(builder, data, index, FLOATS), align=4)
    return NOTHING


def _magnitude(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return builder.bitcast(builder.and_(builder.bitcast(vector, INTS), constant(INTS, 0x7FFFFFFF)), FLOATS)


def _root(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    kind = ir.FunctionType(FLOATS, [FLOATS])
    name = f"llvm.sqrt.v{LANES}f32"
    return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [vector])


def _some(builder: ir.IRBuilder, mask: ir.Value) -> ir.Value:
    word = ir.IntType(LANES)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, word), ir.Constant(word, 0))


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _highest(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    width = LANES // 2
    while width:
        turned = ir.Constant(INTS, [(lane + width) % LANES for lane in range(LANES)])
        vector = _larger(builder, vector, builder.shuffle_vector(vector, vector, turned))
        width //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _compare(sign: str) -> Callable[..., ir.Value]:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


NOTHING = ir.Constant(ir.LiteralStructType([]), None)
ROWS = types.Array(types.float32, 2, "C")
_TWO = (VECTOR, VECTOR)
for _operation in (
    (operator.add, _TWO, VECTOR, ir.IRBuilder.fadd),
    (operator.iadd, _TWO, VECTOR, ir.IRBuilder.fadd),
    (operator.sub, _TWO, VECTOR, ir.IRBuilder.fsub),
    (operator.mul, _TWO, VECTOR, ir.IRBuilder.fmul),
    (operator.truediv, _TWO, VECTOR, ir.IRBuilder.fdiv),
    (operator.neg, (VECTOR,), VECTOR, ir.IRBuilder.fneg),
    (abs, (VECTOR,), VECTOR, _magnitude),
    (operator.lt, _TWO, MASK, _compare("<")),
    (operator.le, _TWO, MASK, _compare("<=")),
    (operator.gt, _TWO, MASK, _compare(">")),
    (operator.ge, _TWO, MASK, _compare(">=")),
    (operator.eq, _TWO, MASK, _compare("==")),
    (operator.ne, _TWO, MASK, lambda builder, a, b: builder.fcmp_unordered("!=", a, b)),
    (operator.and_, (MASK, MASK), MASK, ir.IRBuilder.and_),
    (splat, (VECTOR,), VECTOR, lambda _builder, vector: vector),
    (load, (ROWS, types.intp), VECTOR, _load),
    (store, (ROWS, types.intp, VECTOR), types.none, _store),
    (select, (MASK, VECTOR, VECTOR), VECTOR, ir.IRBuilder.select),
    (larger, _TWO, VECTOR, _larger),
    (smaller, _TWO, VECTOR, _smaller),
    (some, (MASK,), types.boolean, _some),
    (highest, (VECTOR,), types.float32, _highest),
    (root, (VECTOR,), VECTOR, _root),
):
    define(*_operation)

"""Arrays whose references compiled code need not count."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

T = TypeVar("T")
Context = Any  # numba's


def _borrow(_typing: Context, room: Context) -> tuple[Any, Callable[..., ir.Value]]:
    """A tuple of arrays, or one array, that the caller of the compiled function keeps alive.

    numba counts a reference, with an atomic instruction, whenever a function takes an array or a tuple's item: two
    thirds of the time of the quickest encoders. For arrays without an owner there is nothing to count.
    """

    def unowned(context: Context, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> ir.Value:
        if not isinstance(kind, types.Array):
            return value
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        return array._getvalue()

    def generate(context: Context, builder: ir.IRBuilder, _: Context, values: tuple[ir.Value, ...]) -> ir.Value:
        if isinstance(room, types.Array):
            return unowned(context, builder, room, values[0])
        items = [unowned(context, builder, k, builder.extract_value(values[0], i)) for i, k in enumerate(room.types)]
        return context.make_tuple(builder, room, items)

    return room(room), generate


borrow = cast(Callable[[T], T], intrinsic(_borrow))

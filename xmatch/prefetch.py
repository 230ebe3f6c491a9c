"""Prefetch instruction for compiled functions: asks for a value's cache line without waiting for it."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_READ, _KEEP_IN_ALL_CACHES, _DATA = 0, 3, 1


def _prefetch(typing_context: Any, array: Any, place: Any) -> Any:
    if not isinstance(array, types.Array) or not array.is_contig:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        byte, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer])
        llvm_prefetch = builder.module.globals.get("llvm.prefetch.p0i8") or ir.Function(
            builder.module, function, "llvm.prefetch.p0i8"
        )
        options = [ir.Constant(integer, option) for option in (_READ, _KEEP_IN_ALL_CACHES, _DATA)]
        builder.call(llvm_prefetch, [builder.bitcast(builder.gep(data, [arguments[1]]), byte), *options])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


# prefetch(array, place), in compiled functions only: fetch the element at `place` of a contiguous array, counted over
# all its dimensions. A place beyond the array does no harm.
prefetch: Any = intrinsic(_prefetch)

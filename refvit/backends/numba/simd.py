"""Vectors of float32 values in Numba code: one value of type `vector` is one register, `LANES` values.

Kernels are plain Python over int64 addresses (in bytes), int64 sizes and these vectors, with + - * and the functions below.
Nothing here allocates, raises or needs the interpreter lock. A whole vector is read or written unless `n`, the number of lanes
that count (0 to LANES), says otherwise; the other lanes are then zero, or left alone in memory.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.ir as ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from refvit.backends.numba.cpu import target

LANES = target().lanes
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VEC, INTS, MASK = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(ir.IntType(1), LANES)


class Vector(types.Type):
    """The type of a register."""

    def __init__(self) -> None:
        super().__init__(f"float32x{LANES}")


vector = Vector()


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is LLVM's own."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VEC)


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    module = builder.module
    known = module.globals.get(name)
    return known if known is not None else ir.Function(module, ir.FunctionType(result, arguments), name)


def _constant(value: float) -> Any:
    return ir.Constant(VEC, [value] * LANES)


def _spread(b: Any, value: Any, kind: Any = VEC) -> Any:
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _first(b: Any, n: Any) -> Any:
    """The mask of the first n lanes."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return b.icmp_signed("<", lanes, _spread(b, b.trunc(n, I32), INTS))


def _instruction(kinds: tuple[Any, ...], result: Any, write: Any) -> Any:
    """An intrinsic of these argument types; `write(builder, *arguments)` emits it."""
    names = ", ".join(f"a{i}" for i in range(len(kinds)))
    made = result(*kinds)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value = write(builder, *arguments)
        return _context.get_dummy_value() if value is None else value

    scope: dict[str, Any] = {"made": made, "generate": generate}
    exec(f"def body(typing, {names}): return made, generate", scope)  # Numba wants the arguments by name
    return intrinsic(scope["body"])


_i, _f, _v = types.int64, types.float32, vector


def _load(b: Any, p: Any) -> Any:
    value = b.load(b.inttoptr(p, VEC.as_pointer()))
    value.align = 4
    return value


def _load_part(b: Any, p: Any, n: Any) -> Any:
    f = _declare(b, f"llvm.masked.load.v{LANES}f32.p0", VEC, [VEC.as_pointer(), I32, MASK, VEC])
    return b.call(f, [b.inttoptr(p, VEC.as_pointer()), I32(4), _first(b, n), _constant(0.0)])


def _store(b: Any, p: Any, v: Any) -> None:
    b.store(v, b.inttoptr(p, VEC.as_pointer())).align = 4


def _store_part(b: Any, p: Any, v: Any, n: Any) -> None:
    f = _declare(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [VEC, VEC.as_pointer(), I32, MASK])
    b.call(f, [v, b.inttoptr(p, VEC.as_pointer()), I32(4), _first(b, n)])


def _scalar_load(b: Any, p: Any) -> Any:
    value = b.load(b.inttoptr(p, F32.as_pointer()))
    value.align = 4
    return value


def _scalar_store(b: Any, p: Any, x: Any) -> None:
    b.store(x, b.inttoptr(p, F32.as_pointer())).align = 4


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.call(_declare(b, f"llvm.fma.v{LANES}f32", VEC, [VEC] * 3), [x, y, z])


def _unary(name: str) -> Any:
    return lambda b, x: b.call(_declare(b, f"llvm.{name}.v{LANES}f32", VEC, [VEC]), [x])


def _reduce(name: str, start: float | None) -> Any:
    def write(b: Any, x: Any) -> Any:
        kinds = [VEC] if start is None else [F32, VEC]
        f = _declare(b, f"llvm.vector.reduce.{name}.v{LANES}f32", F32, kinds)
        call = b.call(f, [x] if start is None else [F32(start), x])
        call.fastmath.add("reassoc")
        return call

    return write


def _exponent(b: Any, x: Any) -> Any:
    return b.bitcast(b.shl(b.bitcast(x, INTS), ir.Constant(INTS, [23] * LANES)), VEC)


load = _instruction((_i,), _v, _load)  # LANES values at an address
load_part = _instruction((_i, _i), _v, _load_part)  # (address, n)
store = _instruction((_i, _v), types.void, _store)
store_part = _instruction((_i, _v, _i), types.void, _store_part)  # (address, v, n)
get = _instruction((_i,), _f, _scalar_load)  # one value
put = _instruction((_i, _f), types.void, _scalar_store)
splat = _instruction((_f,), _v, _spread)  # one value in all lanes
fma = _instruction((_v, _v, _v), _v, _fma)  # x * y + z, rounded once
sqrt = _instruction((_v,), _v, _unary("sqrt"))
absolute = _instruction((_v,), _v, _unary("fabs"))
total = _instruction((_v,), _f, _reduce("fadd", 0.0))  # sum of the lanes
highest = _instruction((_v,), _f, _reduce("fmax", None))
exponent = _instruction((_v,), _v, _exponent)  # the last 9 bits as sign and exponent of a float
# of two values the greater or smaller; where either is NaN, the second
maximum = _instruction((_v, _v), _v, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
minimum = _instruction((_v, _v), _v, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
keep = _instruction((_v, _i, _v), _v, lambda b, x, n, other: b.select(_first(b, n), x, other))  # lanes from n on of other


def _word(b: Any, p: Any, k: Any) -> Any:
    return b.gep(b.inttoptr(p, I64.as_pointer()), [k])


def _set_arg(b: Any, p: Any, k: Any, x: Any) -> None:
    b.store(x, _word(b, p, k))


arg = _instruction((_i, _i), _i, lambda b, p, k: b.load(_word(b, p, k)))  # int64 number k at p
arg_f32 = _instruction((_i, _i), _f, lambda b, p, k: b.bitcast(b.trunc(b.load(_word(b, p, k)), I32), F32))  # as float32
set_arg = _instruction((_i, _i, _i), types.void, _set_arg)


def _call(b: Any, function: Any, fields: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])
    b.call(b.inttoptr(function, kind.as_pointer()), [b.inttoptr(fields, I64.as_pointer())])


call_tile = _instruction((_i, _i), types.void, _call)  # (address of a microkernel, address of its fields)


def _operator(python: Any, write: Any) -> None:
    """Let Numba take `python`, an operator, of two vectors."""

    class Rule(ConcreteTemplate):
        cases = (signature(vector, vector, vector),)

    infer_global(python)(Rule)
    lower_builtin(python, vector, vector)(lambda context, builder, signature, arguments: write(builder, *arguments))


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y))


def _reciprocal(b: Any, x: Any) -> Any:
    """1 / x; with 16 lanes the flags allow an estimate of 14 bits and a Newton step: their division takes as long as exp."""
    return b.fdiv(_constant(1.0), x, flags=("arcp", "ninf", "contract") if LANES == 16 else ())


reciprocal = _instruction((_v,), _v, _reciprocal)  # of |x| from 1e-37 to 1e37, to 1.5 ulp; NaN stays
negative = _instruction((_v,), _v, lambda b, x: b.fneg(x))

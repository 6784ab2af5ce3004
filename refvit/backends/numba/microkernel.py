"""The register tile of every matrix product and convolution, written as LLVM IR.

    out[m, j] = init + sum over t < T, c < C of a[t][m][skip + c] * w[(t C + c) ldb + j]     m < rows, j < vectors * lanes

All sums stay in registers: rows x vectors accumulators, one value of `a` broadcast against the vectors of `w` at a time. `a` is
reached through a table of T x rows addresses, which makes the same kernel a matrix product (T = 1), a convolution (T taps, each
row an output pixel; a tap outside of the map points at zeros) or a product with any stride between rows.

The only argument is the address of int64 values, `FIELDS`. `compile_tile` gives the object code of one size of the tile.
"""

from __future__ import annotations

import llvmlite.ir as ir

# addresses are in bytes, strides in float32 values
FIELDS = (
    "table",  # of T x rows addresses
    "taps",  # T
    "depth",  # C
    "weight",  # first value of w
    "ldb",  # from a row of w to the next
    "out",
    "ldo",
    "bias",  # of vectors * lanes values, or 0
    "residual",  # what is added before the activation, shaped as out, or 0
    "ldr",
    "relu",  # 1: max(., 0) at the end, NaN stays
    "last",  # lanes of the last vector that are stored, 1 to lanes
    "skip",  # values to leave out at the beginning of each row of a, for sums cut into pieces
    "ahead",  # where to ask memory for what will be needed next
    "pace",  # bytes by which that place moves on with every row of w
)
NUMBER = {name: i for i, name in enumerate(FIELDS)}

# rows of w in a turn of the loop, which reads the addresses of some rows of a again: 14 of them do not fit into registers
AT_ONCE = 2

I1, I8, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def tile_name(rows: int, vectors: int) -> str:
    return f"tile_{rows}x{vectors}"


def tile_module(rows: int, vectors: int, lanes: int) -> ir.Module:
    """The IR of `void tile_RxV(int64 *fields)`."""
    module = ir.Module(tile_name(rows, vectors))
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), tile_name(rows, vectors))
    function.attributes.add("nounwind")
    vec, mask_type = ir.VectorType(F32, lanes), ir.VectorType(I1, lanes)
    fma = ir.Function(module, ir.FunctionType(vec, [vec] * 3), f"llvm.fma.v{lanes}f32")
    prefetch = ir.Function(module, ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32]), "llvm.prefetch.p0")
    masked = [vec.as_pointer(), I32, mask_type]
    load_part = ir.Function(module, ir.FunctionType(vec, [*masked, vec]), f"llvm.masked.load.v{lanes}f32.p0")
    store_part = ir.Function(module, ir.FunctionType(ir.VoidType(), [vec, *masked]), f"llvm.masked.store.v{lanes}f32.p0")
    entry = function.append_basic_block("entry")
    b = ir.IRBuilder(entry)
    field = {name: b.load(b.gep(function.args[0], [I64(i)])) for i, name in enumerate(FIELDS)}
    zero = ir.Constant(vec, [0.0] * lanes)

    def splat(value: ir.Value, kind: ir.VectorType) -> ir.Value:
        one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def load(pointer: ir.Value, kind: ir.Type = vec) -> ir.Value:
        value = b.load(b.bitcast(pointer, kind.as_pointer()))
        value.align = 4 if kind is vec else 8
        return value

    def address(value: ir.Value) -> ir.Value:
        return b.inttoptr(value, F32.as_pointer())

    count = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    mask = b.icmp_signed("<", count, splat(field["last"], ir.VectorType(I64, lanes)))

    def each(base: ir.Value, stride: ir.Value, m: int, j: int) -> ir.Value:
        return b.gep(base, [b.add(b.mul(stride, I64(m)), I64(j * lanes))])

    def load_at(base: ir.Value, stride: ir.Value, m: int, j: int) -> ir.Value:
        pointer = each(base, stride, m, j)
        if j < vectors - 1:
            return load(pointer)
        return b.call(load_part, [b.bitcast(pointer, vec.as_pointer()), I32(4), mask, zero])

    weight, out = address(field["weight"]), address(field["out"])
    far = b.inttoptr(field["ahead"], I8.as_pointer())
    table = b.inttoptr(field["table"], I64.as_pointer())
    flag = {name: b.icmp_signed("!=", field[name], I64(0)) for name in ("bias", "residual", "relu")}

    # the sums begin with zero or the bias
    blocks = {n: function.append_basic_block(n) for n in ("plain", "biased", "tap", "next", "end")}
    tiles = [(m, j) for m in range(rows) for j in range(vectors)]
    b.cbranch(flag["bias"], blocks["biased"], blocks["plain"])
    b.position_at_end(blocks["biased"])
    bias = [load(b.gep(address(field["bias"]), [I64(j * lanes)])) for j in range(vectors)]
    b.branch(blocks["tap"])
    b.position_at_end(blocks["plain"])
    b.branch(blocks["tap"])

    b.position_at_end(blocks["tap"])
    t, w_tap, ahead_tap = b.phi(I64), b.phi(F32.as_pointer()), b.phi(I8.as_pointer())
    sums = [b.phi(vec) for _ in tiles]
    for name, start in (("biased", [bias[j] for _, j in tiles]), ("plain", [zero] * len(tiles))):
        t.add_incoming(I64(0), blocks[name])
        w_tap.add_incoming(weight, blocks[name])
        ahead_tap.add_incoming(far, blocks[name])
        for phi, value in zip(sums, start, strict=True):
            phi.add_incoming(value, blocks[name])
    rows_at = [b.gep(address(b.load(b.gep(table, [b.add(b.mul(t, I64(rows)), I64(m))]))), [field["skip"]]) for m in range(rows)]

    def steps(count: int, c: ir.Value, w: ir.Value, line: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        """`count` rows of w from row c on, each times its value in every row of a: what follows in place of the arguments."""
        for _ in range(count):
            columns = [load(b.gep(w, [I64(j * lanes)])) for j in range(vectors)]
            added: list[ir.Value] = []
            for m in range(rows):
                value = b.load(b.gep(rows_at[m], [c]))
                value.align = 4
                broadcast = splat(value, vec)
                added += [b.call(fma, [broadcast, columns[j], sums[m * vectors + j]]) for j in range(vectors)]
            for i in range(-(-4 * lanes * vectors // 64)):
                b.call(prefetch, [b.gep(line, [I64(64 * i)]), I32(0), I32(2), I32(1)])  # to read, into the second cache
            c, w, line, sums = b.add(c, I64(1)), b.gep(w, [field["ldb"]]), b.gep(line, [field["pace"]]), tuple(added)
        return [c, w, line, *sums]

    def loop(count: int, start: list[ir.Value]) -> list[ir.Value]:
        """`steps` as often as there are `count` rows left."""
        before = b.basic_block
        body, after = function.append_basic_block(f"steps_{count}"), function.append_basic_block(f"after_{count}")
        b.cbranch(b.icmp_signed("<=", b.add(start[0], I64(count)), field["depth"]), body, after)
        b.position_at_end(body)
        state = [b.phi(value.type) for value in start]
        done = steps(count, *state)
        b.cbranch(b.icmp_signed("<=", b.add(done[0], I64(count)), field["depth"]), body, after)
        b.position_at_end(after)
        end = [b.phi(value.type) for value in start]
        for first, now, then, last in zip(start, state, done, end, strict=True):
            for phi in (now, last):
                phi.add_incoming(first, before)
                phi.add_incoming(then, body)
        return end

    state = [I64(0), w_tap, ahead_tap, *sums]
    for count in (AT_ONCE, 1):
        state = loop(count, state)
    _, w_next, line_next, *later = state
    b.branch(blocks["next"])

    b.position_at_end(blocks["next"])
    t_next = b.add(t, I64(1))
    t.add_incoming(t_next, blocks["next"])
    w_tap.add_incoming(w_next, blocks["next"])
    ahead_tap.add_incoming(line_next, blocks["next"])
    for phi, value in zip(sums, later, strict=True):
        phi.add_incoming(value, blocks["next"])
    b.cbranch(b.icmp_signed("<", t_next, field["taps"]), blocks["tap"], blocks["end"])

    b.position_at_end(blocks["end"])
    residual = address(field["residual"])
    for stage in ("residual", "relu"):
        then, join = function.append_basic_block(stage), function.append_basic_block(f"after_{stage}")
        origin = b.basic_block
        b.cbranch(flag[stage], then, join)
        b.position_at_end(then)
        if stage == "residual":
            changed = [b.fadd(v, load_at(residual, field["ldr"], m, j)) for v, (m, j) in zip(later, tiles, strict=True)]
        else:
            changed = [b.select(b.fcmp_ordered("<", v, zero), zero, v) for v in later]
        b.branch(join)
        b.position_at_end(join)
        merged = []
        for old, new in zip(later, changed, strict=True):
            phi = b.phi(vec)
            phi.add_incoming(old, origin)
            phi.add_incoming(new, then)
            merged.append(phi)
        later = merged
    for value, (m, j) in zip(later, tiles, strict=True):
        pointer = b.bitcast(each(out, field["ldo"], m, j), vec.as_pointer())
        if j < vectors - 1:
            b.store(value, pointer).align = 4
        else:
            b.call(store_part, [value, pointer, I32(4), mask])
    b.ret_void()
    return module

"""The loop that every thread of the team runs: take a unit, do it, count it, and wait only for what the next one reads.

Each thread begins with its own run of the units, the same part of every map, which its cache then knows; when that is done it
takes from the runs of the others. There is no barrier. An instruction is finished when all its units are counted, and says
before which instruction everything has to be finished for it to begin. A thread that comes late, or that the system puts aside
between two units, holds nobody up.
"""

import llvmlite.ir as ir
from numba.core import types

from refvit.backends.numba.simd import I64, _instruction, arg, set_arg

_i = types.int64

# the team's state, int64 each on a cache line of its own where threads write
GENERATION, ACTIVE, PROGRAM, COUNT, COUNTERS, TICKS, YIELD, THREADS = 0, 8, 16, 17, 18, 19, 20, 21
# an instruction of the program; its counters: the units that are done, then for each thread how many of its run are taken
KERNEL, ARGS, UNITS, NEED, ENTRY_BYTES = 0, 1, 2, 3, 32
LINE = 64  # bytes: each counter has a cache line of its own
MOST_THREADS = 4096  # a ticket is a generation times this, plus the number of the thread
SPINS = 2000  # before the processor is offered to others


def _pointer(b, p):
    return b.inttoptr(p, I64.as_pointer())


def _declare(b, name, kind):
    known = b.module.globals.get(name)
    return known if known is not None else ir.Function(b.module, kind, name)


def _relax(b, zero):
    """A hint to the processor that this is a spin loop, where there is one."""
    import platform

    if platform.machine().lower() in ("x86_64", "amd64"):
        b.call(_declare(b, "llvm.x86.sse2.pause", ir.FunctionType(ir.VoidType(), [])), [])


def _clock(b, zero):
    import platform

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return b.call(_declare(b, "llvm.readcyclecounter" if x86 else "llvm.readsteadycounter", ir.FunctionType(I64, [])), [])


def _call_kernel(b, function, a, unit, scratch):
    kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
    b.call(b.inttoptr(function, kind.as_pointer()), [a, unit, scratch])


def _call_plain(b, function):
    b.call(b.inttoptr(function, ir.FunctionType(ir.IntType(32), []).as_pointer()), [])


fetch_add = _instruction((_i, _i), _i, lambda b, p, x: b.atomic_rmw("add", _pointer(b, p), x, "seq_cst"))
read = _instruction((_i,), _i, lambda b, p: b.load_atomic(_pointer(b, p), "seq_cst", 8))
relax = _instruction((_i,), types.void, _relax)
clock = _instruction((_i,), _i, _clock)
call_kernel = _instruction((_i, _i, _i, _i), types.void, _call_kernel)
call_plain = _instruction((_i,), types.void, _call_plain)


def work(a, ticket, scratch):
    """Run the program of a generation; a: the team's state. Whoever comes when it is over leaves at once."""
    fetch_add(a + 8 * ACTIVE, 1)
    if read(a + 8 * GENERATION) == ticket // MOST_THREADS:
        me, threads = ticket % MOST_THREADS, arg(a, THREADS)
        counter_bytes = LINE * (1 + threads)
        program, count = arg(a, PROGRAM), arg(a, COUNT)
        counters, ticks, give_way = arg(a, COUNTERS), arg(a, TICKS), arg(a, YIELD)
        finished = 0  # everything before this instruction
        for i in range(count + 1):
            need = arg(program + ENTRY_BYTES * i, NEED) if i < count else count
            while finished < need:
                units = arg(program + ENTRY_BYTES * finished, UNITS)
                done = counters + counter_bytes * finished
                spins = 0
                while read(done) < units:
                    spins += 1
                    relax(0)
                    if spins > SPINS:
                        call_plain(give_way)
                finished += 1
            if i < count:
                entry = program + ENTRY_BYTES * i
                units, kernel, args = arg(entry, UNITS), arg(entry, KERNEL), arg(entry, ARGS)
                counter = counters + counter_bytes * i
                for k in range(threads):
                    owner = (me + k) % threads
                    first, stop = units * owner // threads, units * (owner + 1) // threads
                    taken = counter + LINE * (1 + owner)
                    while first + read(taken) < stop:
                        unit = first + fetch_add(taken, 1)
                        if unit >= stop:
                            break
                        call_kernel(kernel, args, unit, scratch)
                        if fetch_add(counter, 1) == units - 1 and ticks != 0:
                            set_arg(ticks, i, clock(0))
    fetch_add(a + 8 * ACTIVE, -1)


def close(a, unit, scratch):
    """End the generation: wait until nobody looks at the program any more."""
    fetch_add(a + 8 * GENERATION, 1)
    spins = 0
    while read(a + 8 * ACTIVE) > 0:
        spins += 1
        relax(0)
        if spins > SPINS:
            call_plain(arg(a, YIELD))


def now(a, unit, scratch):
    """Write the time of the processor's clock to `a`."""
    set_arg(a, 0, clock(0))

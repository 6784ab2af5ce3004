"""The processor's float32 peak, measured: multiply-adds on registers and nothing else.

llvmlite, which comes with Numba, compiles the loop. It is independent of what is being compared.
"""

from __future__ import annotations

import ctypes
import threading
import time

import llvmlite.binding as llvm
import llvmlite.ir as ir

WIDTHS = {"avx512f": 16, "avx": 8, "neon": 4}  # float32 values in a vector register, by feature of the processor
CHAINS = 16  # independent sums: more than latency times units, fewer than registers of the smallest file


class Peak:
    """`Peak(threads).measure(seconds)` is the rate in GFLOP/s; a multiply-add counts as two operations."""

    def __init__(self, threads: int) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        self.threads = threads
        self.lanes = next((n for name, n in WIDTHS.items() if features.get(name)), 4)
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True
        )
        module = llvm.parse_assembly(str(_loop(self.lanes)))
        self._engine = llvm.create_mcjit_compiler(module, machine)  # owns the code
        self._engine.finalize_object()
        self._run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(self._engine.get_function_address("multiply_add"))
        start = time.perf_counter()
        self._run(1_000_000)
        self._rate = 1_000_000 / (time.perf_counter() - start)

    def measure(self, seconds: float) -> float:
        count = max(1000, int(seconds * self._rate))
        helpers = [threading.Thread(target=self._run, args=(count,)) for _ in range(self.threads - 1)]
        start = time.perf_counter()
        for helper in helpers:
            helper.start()
        self._run(count)
        for helper in helpers:
            helper.join()
        return 2 * CHAINS * self.lanes * count * self.threads / (time.perf_counter() - start) / 1e9


def _loop(lanes: int) -> ir.Module:
    """float multiply_add(int64 n): n times CHAINS vectors s = s * 0.5 + 1."""
    module, vec, i64 = ir.Module(), ir.VectorType(ir.FloatType(), lanes), ir.IntType(64)
    fma = ir.Function(module, ir.FunctionType(vec, [vec] * 3), f"llvm.fma.v{lanes}f32")
    function = ir.Function(module, ir.FunctionType(ir.FloatType(), [i64]), "multiply_add")
    entry, loop, end = (function.append_basic_block(name) for name in ("entry", "loop", "end"))
    b = ir.IRBuilder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    i, sums = b.phi(i64), [b.phi(vec) for _ in range(CHAINS)]
    half, one = (ir.Constant(vec, [value] * lanes) for value in (0.5, 1.0))
    later = [b.call(fma, [s, half, one]) for s in sums]
    following = b.add(i, i64(1))
    i.add_incoming(i64(0), entry)
    i.add_incoming(following, loop)
    for k, (s, value) in enumerate(zip(sums, later, strict=True)):
        s.add_incoming(ir.Constant(vec, [float(k)] * lanes), entry)  # different, or the compiler keeps one of them
        s.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, function.args[0]), loop, end)
    b.position_at_end(end)
    total = later[0]
    for value in later[1:]:
        total = b.fadd(total, value)
    b.ret(b.extract_element(total, ir.IntType(32)(0)))
    return module

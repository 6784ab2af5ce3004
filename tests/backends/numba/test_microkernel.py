"""The register tile in the assembly of every kind of processor: all sums stay in registers."""

import re

import llvmlite.binding as llvm
import pytest

from refvit.backends.numba.cpu import TILES
from refvit.backends.numba.microkernel import AT_ONCE, tile_module

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
TILE = {feature: shape for feature, *shape in TILES}
PROCESSORS = {
    # feature: triple, processor, multiply-add, a vector register on the stack
    "avx512f": ("x86_64-unknown-linux-gnu", "skylake-avx512", "vfmadd", r"\(%rsp\).*%zmm|%zmm\d+, .*\(%rsp\)"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell", "vfmadd", r"\(%rsp\).*%ymm|%ymm\d+, .*\(%rsp\)"),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1", "fmla", r"(str|stp|ldr|ldp)\tq.*\[sp"),
}


def assembly(feature):
    triple, processor, *_ = PROCESSORS[feature]
    try:
        kind = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this llvmlite cannot write code for {triple}")
    machine = kind.create_target_machine(cpu=processor, opt=3)
    lanes, rows, vectors = TILE[feature]
    module = llvm.parse_assembly(str(tile_module(rows, vectors, lanes)))
    module.triple = triple
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return machine.emit_assembly(module)


@pytest.mark.parametrize("feature", PROCESSORS)
def test_sums_stay_in_registers(feature):
    """Of the loop over a tile's terms: a multiply-add for every sum and step, and no sum in memory."""
    _, rows, vectors = TILE[feature]
    _, _, multiply_add, spilt = PROCESSORS[feature]
    blocks = re.split(r"\n(?=\.?[A-Za-z_$][\w.$]*:)", assembly(feature))
    block = max(blocks, key=lambda block: len(re.findall(multiply_add, block)))
    label = re.match(r"[\w.$]+", block)[0]
    loop = re.match(rf".*?\tj?b?\S*\t{re.escape(label)}\n", block, re.DOTALL)[0]
    lines = [line for line in loop.splitlines() if re.search(spilt, line)]
    assert len(re.findall(multiply_add, loop)) == AT_ONCE * rows * vectors
    assert not lines

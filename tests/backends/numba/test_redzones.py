"""Every small model between guards, instruction by instruction, unit by unit; and that the guards find what they are for.

They stand in place of runs with NUMBA_BOUNDSCHECK or NUMBA_DISABLE_JIT, which do not apply here: every kernel reads and writes
by intrinsics at plain addresses, so there are no arrays whose bounds could be checked, and nothing that Python could run.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.redzones import RedzoneError, Redzones
from helpers.small import SMALL, small_graph

from refvit.backends import numba
from refvit.backends.numba.executor import Plan
from refvit.backends.numba.program import Address, Buffer
from refvit.graph.trace import trace
from refvit.models import architecture


def compiled(name, threads=1):
    """(plan, inputs by name, outputs by name as the team computes them)"""
    graph = small_graph(name, lambda shapes: {n: a.astype(np.float32) for n, a in draw(shapes).items()})
    run = numba.compile_graph(graph, threads)
    (entry,) = graph.inputs
    x = np.random.default_rng(5).standard_normal(SMALL[name][2]).astype(np.float32)
    return run.plan, {entry: x}, run(x)


def same(got, want):
    return list(got) == list(want) and all((got[n].view(np.int32) == want[n].view(np.int32)).all() for n in want)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("name", SMALL)
def test_every_instruction_keeps_to_what_it_declares(name, threads):
    plan, arrays, want = compiled(name, threads)
    assert all(np.isfinite(a).all() for a in want.values())
    assert same(Redzones(plan).run(arrays, apart=True), want)


PUBLISHED = [
    ("vit_tiny_patch16_224", (224, 224)), ("vit_small_patch16_224", (224, 224)), ("vit_base_patch16_224", (224, 224)),
    ("deit_tiny_distilled_patch16_224", (224, 224)), ("mobilevit_xxs", (256, 256)), ("mobilevit_s", (256, 256)),
    ("mobilevit_s_deeplabv3", (512, 512)), ("mobilevit_xxs_ssdlite", (320, 320)), ("hrnet_w18_small", (224, 224)),
    ("hrnet_w18", (224, 224)), ("hrnet_w32", (224, 224)), ("hrnet_w32_pose", (256, 192)), ("hrnet_w48_ocr", (128, 96)),
    ("hrvit_b1", (224, 224)), ("hrvit_b1_segformer", (192, 256)), ("hrvit_b2_upernet", (64, 96)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_published_models(name, size):
    arch, shape = architecture(name), (1, 3, *size)
    params = {n: a.astype(np.float32) for n, a in draw(arch.parameters(arch.config)).items()}
    graph = trace(arch.forward, shape, params, config=arch.config)
    run = numba.compile_graph(graph, 1)
    (entry,) = graph.inputs
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    assert same(Redzones(run.plan).run({entry: x}), run(x))


# what the guards have to find: each of these takes one thing away from a plan that is right


def altered(plan, number, **changes):
    instructions = list(plan.instructions)
    instructions[number] = replace(instructions[number], **changes)
    return Plan(instructions, plan.inputs, plan.outputs)


def first(plan, wanted):
    return next((n, i) for n, i in enumerate(plan.instructions) if wanted(i))


def swapped(plan, old, new):
    """The plan with another buffer in the place of one."""
    instructions = [
        replace(
            i,
            args=[Address(new, a.offset) if isinstance(a, Address) and a.buffer is old else a for a in i.args],
            reads=[new if b is old else b for b in i.reads],
            writes=[new if b is old else b for b in i.writes],
        )
        for i in plan.instructions
    ]
    return Plan(instructions, plan.inputs, plan.outputs)


def inner(buffer):
    return buffer.array is None and buffer.public is None


@pytest.mark.parametrize("name", ["vit", "mobilevit at an odd size"])
def test_a_buffer_that_is_too_small_is_found(name):
    plan, arrays, _ = compiled(name)
    buffers = dict.fromkeys(b for i in plan.instructions for b in i.writes if inner(b))
    for buffer in list(buffers)[::5]:
        with pytest.raises(RedzoneError, match="not declared"):
            Redzones(swapped(plan, buffer, Buffer(buffer.size - 1))).run(arrays)


def test_weights_that_are_cut_off_are_found():
    """What lies behind them is NaN."""
    plan, arrays, want = compiled("vit")
    found = 0
    for buffer in dict.fromkeys(b for i in plan.instructions for b in i.reads if b.array is not None and np.abs(b.array).max()):
        flat = buffer.array.reshape(-1)
        last = int(np.flatnonzero(flat)[-1])  # padding of the last panel is read but not used
        found += not same(Redzones(swapped(plan, buffer, Buffer(last, array=flat[:last].copy()))).run(arrays), want)
    assert found > 10


def test_a_write_that_is_not_declared_is_found():
    plan, arrays, _ = compiled("mobilevit")
    number, instruction = first(plan, lambda i: inner(i.writes[0]))
    with pytest.raises(RedzoneError, match=f"instruction {number}, .*not declared"):
        Redzones(altered(plan, number, writes=(), reads=(*instruction.reads, *instruction.writes))).run(arrays)


@pytest.mark.parametrize(("name", "step"), [("vit", 2), ("hrnet", 20), ("mobilevit", 20)])
def test_a_read_that_is_not_declared_is_found(name, step):
    plan, arrays, want = compiled(name)
    tried = 0
    for number, instruction in list(enumerate(plan.instructions))[::step]:
        for buffer in instruction.reads:
            named = any(isinstance(a, Address) and a.buffer is buffer for a in instruction.args)
            if inner(buffer) and named and buffer not in instruction.writes:
                less = altered(plan, number, reads=[b for b in instruction.reads if b is not buffer])
                assert not same(Redzones(less).run(arrays), want)
                tried += 1
    assert tried > 2


def test_scratch_that_is_too_small_is_found():
    plan, arrays, _ = compiled("hrnet")
    number, instruction = first(plan, lambda i: i.kernel.startswith("winograd"))
    with pytest.raises(RedzoneError, match="scratch"):
        Redzones(altered(plan, number, scratch=instruction.scratch - 256)).run(arrays)


def test_units_that_meet_are_found():
    plan, arrays, _ = compiled("mobilevit")
    zones = Redzones(plan)
    call = zones._unit  # neighbours do the same work
    zones._unit = lambda i, what, kernel, table, unit: call(i, what, kernel, table, unit // 2)
    with pytest.raises(RedzoneError, match="another unit"):
        zones.run(arrays, apart=True)

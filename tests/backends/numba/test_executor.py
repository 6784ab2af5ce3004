"""Runs that are disturbed: sleeping units, other callers, forks, Ctrl-C, no memory, damaged caches, edited sources."""

import gc
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.blocks import draw
from helpers.delays import Delays
from helpers.small import SMALL, small_graph

import refvit
from refvit.backends import numba
from refvit.backends import numpy as reference
from refvit.backends.numba import constants, executor, objects
from refvit.backends.numba import team as teams
from refvit.graph.trace import trace
from refvit.models import architecture

pty = pytest.importorskip("pty", reason="fork, signals and pseudo-terminals are POSIX only")
THREADS = (1, 2, 3, 5, 8)
ENGINES = ("vit", "mobilevit", "hrnet", "hrvit")


def build(name):
    return small_graph(name, lambda shapes: {n: a.astype(np.float32) for n, a in draw(shapes).items()})


def image(name, seed=5):
    return np.random.default_rng(seed).standard_normal(SMALL[name][2]).astype(np.float32)


def same(got, want):
    return list(got) == list(want) and all((got[n].view(np.int32) == want[n].view(np.int32)).all() for n in want)


# threads ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_same_bits_whoever_comes_first(name):
    graph, x = build(name), image(name)
    want = numba.compile_graph(graph, 1)(x)
    for seed, threads in enumerate(THREADS):
        run = numba.compile_graph(graph, threads)  # which may cut the work in another way
        with Delays(run.plan, seed=seed) as delays:
            got = run(x)
        assert delays.units == sum(i.units for i in run.plan.instructions)
        assert same(got, want)


@pytest.mark.parametrize("name", ENGINES)
def test_delays_find_what_is_not_waited_for(name, monkeypatch):
    graph, x = build(name), image(name)
    want = numba.compile_graph(graph, 1)(x)
    monkeypatch.setattr(executor.memory, "needs", lambda instructions, offsets: [0] * len(instructions))
    run = numba.compile_graph(graph, 8)
    wrong = 0
    for seed in range(20):
        with Delays(run.plan, seed=seed):
            wrong += not same(run(x), want)
    assert wrong


def test_many_callers_of_many_models():
    """Some compile what others already run; each call gets its own answer."""
    models = [refvit.load(threads=threads) for threads in (1, 2, 3)]
    graphs = [numba.compile_graph(build(name), 5) for name in ENGINES]
    rng = np.random.default_rng(0)
    jobs = [(models[i % 3], rng.standard_normal((1 + i % 2, 3, 32 + 8 * (i % 5), 40)).astype(np.float32)) for i in range(10)]
    jobs += [(graph, image(name, seed)) for graph, name in zip(graphs, ENGINES, strict=True) for seed in range(3)]
    alone = refvit.load(threads=1)

    def once(job):
        call, x = job
        y = call(x)
        return y if isinstance(y, dict) else {"output": y}

    want = [once((alone, x) if call in models else (call, x)) for call, x in jobs]
    order = [i for i in range(len(jobs)) for _ in range(4)]
    random.Random(1).shuffle(order)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(lambda i: same(once(jobs[i]), want[i]), order))
    finally:
        sys.setswitchinterval(switch)


# what takes a caller away ----------------------------------------------------------------------------------------------------


class Stop(BaseException):
    pass


def test_a_call_that_is_interrupted_spoils_no_later_one():
    """As by Ctrl-C: the helpers may still be at work when the caller has gone."""
    name = "hrnet"
    run, x, other = numba.compile_graph(build(name), 4), image(name), image(name, 6)
    want = run(x)

    def stop(*_):
        raise Stop

    previous = signal.signal(signal.SIGALRM, stop)
    rng, stopped = random.Random(2), 0
    try:
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-5, 3e-3))
                run(other)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                stopped += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert same(run(x), want)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert stopped > 20


def test_helpers_that_were_left_alone_are_waited_for():
    """The caller goes before it has done anything: the helpers run the program, in memory that must stay."""
    name = "mobilevit"
    run, x, other = numba.compile_graph(build(name), 4), image(name), image(name, 6)
    want = run(x)
    group = teams.team()
    own = group._run

    def gone(*_):
        raise Stop

    for seed in range(5):
        with Delays(run.plan, seed=seed) as delays:
            group._run = gone
            try:
                with pytest.raises(Stop):
                    run(other)
                assert group._kept
            finally:
                group._run = own
            assert same(run(x), want)
        assert delays.units >= sum(i.units for i in run.plan.instructions)
    assert not group._kept


def at_line(number, act, call):
    """call(), with act() before the line of this number that it runs of the executor and the team; and how many it ran."""
    files, lines = {executor.__file__, teams.__file__}, 0

    def line(frame, event, _):
        nonlocal lines
        if event == "line":
            if lines == number:
                act()  # which is not traced
            lines += 1
        return line

    previous = sys.gettrace()
    sys.settrace(lambda frame, *_: line if frame.f_code.co_filename in files else None)
    try:
        return call(), lines
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("inner", ["mobilevit", "hrnet"])
def test_a_call_within_a_call(inner, threads):
    """What a signal's handler or a finaliser does, before any line of a call of the same plan or of another one."""
    name = "mobilevit"
    outer, x, other = numba.compile_graph(build(name), threads), image(name), image(inner, 6)
    within = outer if inner == name else numba.compile_graph(build(inner), threads)
    want, wanted = outer(x), within(other)
    _, lines = at_line(-1, None, lambda: outer(x))
    assert lines > 30
    for number in range(lines):
        answers = []
        got, _ = at_line(number, lambda: answers.append(within(other)), lambda: outer(x))  # noqa: B023
        assert same(got, want)
        (answer,) = answers
        assert same(answer, wanted)
    assert same(outer(x), want)


def test_a_handler_that_runs_a_model():
    """At random moments, also of the compiled code's: its caller's thread takes a signal when it comes back."""
    outer, within = (refvit.load(threads=3) for _ in range(2))
    rng, moment = np.random.default_rng(0), random.Random(3)
    x, other = (rng.standard_normal((1, 3, *size)).astype(np.float32) for size in ((32, 32), (48, 40)))
    want, wanted = outer(x), within(other)
    answers = []
    previous = signal.signal(signal.SIGALRM, lambda *_: answers.append(within(other)))
    try:
        for _ in range(200):
            signal.setitimer(signal.ITIMER_REAL, moment.uniform(1e-5, 1e-3))
            assert (outer(x) == want).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(answers) > 20
    assert all((answer == wanted).all() for answer in answers)


def test_no_memory_is_no_dangling_memory():
    memory = teams.Memory()
    memory.reserve(1 << 16)
    with pytest.raises((MemoryError, ValueError)):
        memory.reserve(1 << 62)
    address = memory.reserve(1 << 10)
    start = memory._raw.ctypes.data
    assert start <= address
    assert address + (1 << 10) <= start + memory._raw.nbytes


def in_child(work):
    """What `work()` says in a forked child, which is given 60 seconds."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)
            theirs.send(bool(work()))
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"
    return ours.recv()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
@pytest.mark.parametrize("name", ENGINES)
def test_a_used_model_goes_on_in_a_forked_child(name):
    run, x = numba.compile_graph(build(name), 3), image(name)
    want = run(x)
    for _ in range(3):
        assert in_child(lambda: same(run(x), want) and same(run(x), want))
    assert same(run(x), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_outlives_the_team_of_a_forked_child():
    """Here no helper keeps it: a process with one thread only."""
    script = """
import os
import numpy as np
import refvit
model = refvit.load(threads=1)
x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
want = model(x)
pid = os.fork()
if pid == 0:
    os._exit(0 if (model(x) == want).all() else 1)
print(os.waitpid(pid, 0)[1])
"""
    cache = objects.folder().parents[1]
    out, err = start(script, cache).communicate(timeout=120)
    assert out == "0\n", err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_of_a_busy_process():
    """Forked while another thread runs a model and a third holds the lock of the shared weights."""
    model = refvit.load(threads=2)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    want, done = model(x), threading.Event()
    held, let_go = threading.Event(), threading.Event()

    def run():
        while not done.is_set():
            model(x)

    def hold():
        with constants._lock:
            held.set()
            let_go.wait()

    threads = [threading.Thread(target=run), threading.Thread(target=hold)]
    for thread in threads:
        thread.start()
    try:
        held.wait()
        for size in (40, 48, 56):  # sizes that the child has to compile first
            other = x[..., :size]
            assert in_child(lambda: (model(x) == want).all() and np.isfinite(model(other)).all())  # noqa: B023
    finally:
        let_go.set()
        done.set()
        for thread in threads:
            thread.join()


# numbers that are none -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the reference's, of infinities
def test_nan_and_infinities_come_out_as_from_the_reference(name, bad):
    graph, x = build(name), image(name)
    x[0, 1, 3, 5] = bad
    got, want = numba.compile_graph(graph, 2)(x), reference.compile_graph(graph)(x)
    for public, value in want.items():
        assert (np.isnan(got[public]) == np.isnan(value)).all()
        assert (np.isinf(got[public]) == np.isinf(value)).all()
        assert np.isnan(value[0]).all()  # of the first image; the second is untouched
        assert np.isfinite(value[1:]).all()


# shared weights --------------------------------------------------------------------------------------------------------------


def test_shared_weights_hold_what_they_are_named_by():
    """The key has the identity of arrays: another array must not get it while the entry lives."""
    arch = architecture("mobilevit_xxs")
    params = {n: a.astype(np.float32) for n, a in draw(arch.parameters(arch.config)).items()}
    graph = trace(arch.forward, (1, 3, 64, 64), params, config=arch.config)
    found = constants.Constants(graph)
    name = next(n for n in params if n.endswith("weight"))
    array = weakref.ref(params[name])
    found.share(f"packed {found.key(name)}", lambda: object())
    (entry,) = found.kept
    params.clear()
    del graph, found
    gc.collect()
    assert array() is not None
    del entry
    gc.collect()
    assert array() is None


# the cache on disk -----------------------------------------------------------------------------------------------------------

FEW = ["tile_1x1", "tile_2x1", "tile_3x1"]
REQUIRE = f"""
import sys
from refvit.backends.numba import objects
found = objects.Objects()
found.require({FEW!r})
assert all(found[name] for name in {FEW!r})
"""


def environment(cache, package=None):
    root = Path(refvit.__file__).parents[1] if package is None else package
    return os.environ | {"REFVIT_CACHE": str(cache), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


def start(script, cache, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", script], env=environment(cache), **options)


def whole(cache):
    """The names of the object files that are what they were written as."""
    found = set()
    for file in cache.rglob("*.o"):
        stored = file.read_bytes()
        assert objects.hashlib.sha256(stored[32:]).digest() == stored[:32], f"{file} is damaged"
        found.add(file.stem)
    return found


def test_four_processes_compile_at_once(tmp_path):
    running = [start(REQUIRE, tmp_path) for _ in range(4)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")
    assert whole(tmp_path) == set(FEW)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".o"}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_while_it_writes_leaves_nothing_broken(tmp_path, moment):
    script = f"""
import os, time
def wait(*_):
    print("here", flush=True)
    time.sleep(60)
os.{moment} = wait
{REQUIRE}"""
    process = start(script, tmp_path)
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate()
    assert whole(tmp_path) == set()
    again = start(REQUIRE, tmp_path)
    assert again.communicate(timeout=120) == ("", "")
    assert whole(tmp_path) == set(FEW)


@pytest.mark.slow
def test_processes_killed_at_any_moment(tmp_path):
    rng = random.Random(0)
    for i in range(40):
        process = start(REQUIRE.replace("1x1", f"{1 + i % 6}x2"), tmp_path)
        time.sleep(rng.uniform(0.3, 2.0))
        process.kill()
        process.communicate()
        whole(tmp_path)
    assert start(REQUIRE, tmp_path).communicate(timeout=120) == ("", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(objects, "_memory", {})
    objects.folder.cache_clear()
    yield tmp_path
    objects.folder.cache_clear()


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: bytes(len(b)), lambda b: b + b"\0"]
)
def test_a_file_of_another_length_or_content_is_compiled_again(cache, damage):
    objects.Objects().require([FEW[0]])
    (file,) = cache.rglob("*.o")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    found = objects.Objects()
    assert found.missing([FEW[0]]) == [FEW[0]]
    assert found[FEW[0]]
    assert file.read_bytes() == good


def refuse(*_):
    raise OSError(30, "Read-only file system")


def test_a_folder_that_can_only_be_read_is_read(cache, monkeypatch, caplog):
    """A container whose kernels were compiled when its image was built."""
    objects.Objects().require(FEW[:2])
    monkeypatch.setattr(objects, "write_atomic", refuse)
    compiled, own = [], objects.Objects.compile
    monkeypatch.setattr(objects.Objects, "compile", lambda self, name: compiled.append(name) or own(self, name))
    with caplog.at_level(logging.WARNING):
        assert all(objects.Objects()[name] for name in FEW[:2])
        assert compiled == []
        assert caplog.records == []
        objects.Objects().require([*FEW, "tile_4x1"])
        assert objects.Objects()[FEW[2]]  # from memory
    assert compiled == [FEW[2], "tile_4x1"]
    (record,) = caplog.records
    assert "Read-only file system" in record.getMessage()
    assert not objects.kept()
    assert whole(cache) == set(FEW[:2])


def test_without_a_home(cache, monkeypatch, caplog):
    for name in ("REFVIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(objects.Path, "home", homeless)
    assert objects.Objects()[FEW[0]]
    (record,) = caplog.records
    assert "no home folder" in record.getMessage()


def test_warmup_says_when_nothing_is_kept(cache, monkeypatch, run):
    monkeypatch.setattr(objects, "write_atomic", refuse)
    monkeypatch.setattr(objects, "everything", lambda: FEW[:1])
    code, _, err = run("warmup")
    assert code == 3
    assert "REFVIT_CACHE" in err


def test_sources_that_change_under_a_process(tmp_path):
    """It must neither mix old plans with new kernels nor keep old code as that of the new files."""
    source, package = Path(refvit.__file__).parent, tmp_path / "refvit"
    for path in source.rglob("*"):
        if path.is_file() and (path.suffix in (".py", ".json", ".txt") or path.name == "py.typed"):
            target = package / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    script = """
import refvit.backends.numba as backend
from pathlib import Path
from refvit.backends.numba import objects
from refvit.errors import BackendError
file = Path(backend.__file__).with_name("microkernel.py")
text = file.read_text()
file.write_text(text + "# edited\\n")
try:
    objects.Objects().require(["tile_1x1"])
except BackendError as error:
    assert "start it again" in str(error), error
    print("refused")
file.write_text(text)
objects.Objects().require(["tile_1x1"])
"""
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", script], env=environment(cache, tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")
    assert whole(cache) == {"tile_1x1"}


# what is said meanwhile ------------------------------------------------------------------------------------------------------


def on_a_terminal(script, cache):
    """What a process writes to the terminal that is its standard error."""
    ours, theirs = pty.openpty()
    process = start(script, cache, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0
    return shown.decode()


def test_the_first_compile_is_explained(tmp_path):
    assert "compiling its kernels" in on_a_terminal(REQUIRE, tmp_path)
    assert on_a_terminal(REQUIRE, tmp_path) == ""
    process = start(REQUIRE, tmp_path / "other")  # three small kernels
    assert process.communicate(timeout=120) == ("", "")
    process = start("from refvit.backends.numba.progress import compiling; list(compiling('abcd'))", tmp_path)
    assert "compiling its kernels" in process.communicate(timeout=120)[1]  # a log shall not stop for half a minute in silence

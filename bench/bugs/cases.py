"""One run: a mistake, a candidate that has it, and what has to be found."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.bugs import (
    activations,
    attention,
    files,
    inputs,
    norms,
    onnx_bugs,
    onnx_structure,
    others,
    precision,
    resizing,
    structure,
    weights,
)
from bench.bugs.answers import UNKNOWN, answers, said_of
from bench.bugs.bug import VISIBLE, Bug, Expected, expected
from bench.bugs.effects import FLOAT32, Loss
from bench.bugs.onnx_models import Onnx, RefusedError
from bench.bugs.sites import Torch
from bench.bugs.subjects import CLASSES, SUBJECTS, Reference, Subject, reference

KNOWN = {b.name: b for group in (activations, norms, weights, resizing, attention, structure, precision) for b in group.BUGS}
OTHERS = {b.name: b for b in others.BUGS}
ONNX = {b.name: b for b in (*onnx_bugs.BUGS, *onnx_structure.BUGS, *onnx_structure.OTHERS)}
IMAGES = {m.name: m for m in (*inputs.MISTAKES, *inputs.OTHERS)}
UNNAMED = {*OTHERS, *(m.name for m in inputs.OTHERS)}  # that no table of conventions has
NAMES = (*KNOWN, *IMAGES, *OTHERS)
# the kinds of candidate and how often each is drawn, of those that a mistake can be made in
WEIGHTS = {"torch": 0.4, "torch in half": 0.1, "dump": 0.2, "int8 dump": 0.06, "onnx": 0.24}
FINE = {"torch in half": "torch", "int8 dump": "dump"}  # where so many models in coarse arithmetic do not show a mistake
COARSE_TRIES = 2
ABOUT_ARITHMETIC = {*(b.name for b in precision.BUGS), "norm-in-half-precision"}
TRIES = 6  # sites of a candidate, where a mistake is not seen or not possible
LEVELS = 2.5  # of 255 that a pixel of an input must change for anyone to see it
HEAVY = 0.1  # how often HRViT, whose graph is ten times as long, is tried before the others


@dataclass
class Case:
    """candidate, options: of `refvit.check`. tried: what was drawn before and could not be seen, with its effect.

    refused: models drawn before that an exporter refuses
    """

    seed: int
    bug: str
    words: str
    kind: str = ""
    subject: str = ""
    form: str = ""
    site: str = ""
    detail: str = ""
    expected: Expected | None = None
    candidate: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    tried: list[tuple[str, float]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    nodes: tuple[str, ...] = ()  # of the reference, in its order

    @property
    def answers(self) -> frozenset[str]:
        if self.bug in UNNAMED or self.expected is None:
            return UNKNOWN
        shown = "dump" if "dump" in self.kind else self.kind.partition(" ")[0]
        return answers(self.bug, said_of(self.detail, shown, self.expected.first in self.expected.place[:1]))


def name_of(seed: int, number: int, each: int) -> str:
    """Every mistake has its turn before one comes again; the order changes from round to round."""
    turn, place = divmod(seed * each + number, len(NAMES))
    return NAMES[np.random.default_rng([turn, len(NAMES)]).permutation(len(NAMES))[place]]


def draw(seed: int, name: str, folder: Path) -> Case:
    """A candidate with the mistake `name`. Without `candidate` if none of the subjects allows it."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name in IMAGES:
        return _image(Case(seed, name, IMAGES[name].words), rng, folder)
    kinds = [k for k in WEIGHTS if (name in ONNX if k == "onnx" else name in KNOWN or name in OTHERS)]
    kinds = [k for k in kinds if k not in FINE or name not in ABOUT_ARITHMETIC]
    odds = np.array([WEIGHTS[k] for k in kinds])
    case = Case(seed, name, "", str(rng.choice(kinds, p=odds / odds.sum())))
    bug = ONNX[name] if case.kind == "onnx" else (KNOWN | OTHERS)[name]
    case.words = bug.words
    for subject, form in _pairs(rng, case.kind):
        if case.kind in FINE and len({text.rpartition(": ")[0] for text, _ in case.tried}) >= COARSE_TRIES:
            case.kind = FINE[case.kind]
        truth = reference(subject, rng)
        case.subject, case.form = subject.name, form
        if (_onnx if case.kind == "onnx" else _torch)(case, bug, truth, rng, folder):
            case.options |= {"model": subject.model, "weights": str(truth.file(folder))}
            case.nodes = tuple(truth.graph.nodes)
            return case
    return case


def _pairs(rng: np.random.Generator, kind: str) -> list[tuple[Subject, str]]:
    """Subjects and forms in a random order."""
    pairs = [(s, form) for s in SUBJECTS.values() for form in s.forms]
    if kind == "onnx":
        pairs = [(s, f) for s, form in pairs for f in ("refvit", f"{form} traced", form) if not s.model.startswith("hrvit_b1_")]
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    heavy = [p for p in order if p[0].model.startswith("hrvit")]
    light = [p for p in order if p not in heavy]
    return heavy + light if rng.random() < HEAVY else light + heavy


def _seen(case: Case, found: Expected | None, detail: str) -> bool:
    if found is None or found.effect < VISIBLE:
        case.tried.append((f"{case.subject}, {case.form}: {detail}", 0.0 if found is None else found.effect))
        return False
    case.expected, case.detail = found, detail
    return True


def _torch(case: Case, bug: Bug, truth: Reference, rng: np.random.Generator, folder: Path) -> bool:
    import torch

    for _ in range(TRIES):
        c = Torch(truth, case.form)
        sites = bug.sites(c)
        if not sites:
            return False
        case.site = str(rng.choice(sites))
        style = _style(case.kind, rng)
        names = files.chosen(c, style, rng) if style else []
        before = files.values(c, names, dtype=torch.float64) if style else c.before
        done = bug.inject(c, case.site, rng)
        if done is None:
            continue
        loss, half = FLOAT32, None
        if case.kind == "int8 dump":
            after = files.values(c, names, dtype=torch.float64)
            loss = Loss("int8", files.quantise(c))
            names = [name for name in names if name in loss.scales]
            after = {name: after[name] for name in names if name in after}
            before = {name: before[name] for name in names if name in before}
        elif case.kind == "torch in half":
            half = torch.float16 if rng.random() < 0.5 else torch.bfloat16
            loss = Loss(str(half).removeprefix("torch."))
        if loss is FLOAT32 or half is not None:
            after = files.values(c, names, dtype=torch.float64) if style else c.values()
        before = {value: a for value, a in before.items() if value not in c.hidden} if style else before
        known = c.recognisable() if style is None else _written(names, style)
        if not _seen(case, expected(truth, before, after, done.place, known, loss), done.detail):
            continue
        case.options["input"] = truth.x
        if style is None:
            case.candidate = c.module if half is None else c.module.to(half)
            case.form += "" if half is None else f" in {loss.arithmetic}"
            return True
        case.form += _in_words(style)
        arrays = {"input": truth.x} | files.values(c, names)
        outputs = tuple(c.graph.outputs.values())
        case.candidate = str(files.write(folder / "dump", arrays, style, outputs, loss.scales or None))
        case.options |= {"arithmetic": "int8"} if loss.scales else {}
        return True
    return False


def _style(kind: str, rng: np.random.Generator) -> files.Style | None:
    """Of a dump. One of 8 bits has all values: what is between two of them is not exact."""
    if "dump" not in kind:
        return None
    style = files.draw(rng)
    return replace(style, kind=str(rng.choice(["npy", "bin", "hex"])), last=False, share=1.0) if "int8" in kind else style


def _in_words(style: files.Style) -> str:
    return f", {style.kind}{'' if style.named else ', own names'}{', nhwc' if style.last else ''}, {style.share:g}"


def _written(names: list[str], style: files.Style) -> set[str]:
    """Of values that are written under the reference's names each, of others every fourth: their order is kept."""
    return set(names if style.named else names[3::4])


def _onnx(case: Case, bug: Bug, truth: Reference, rng: np.random.Generator, folder: Path) -> bool:
    try:
        o = Onnx(truth, case.form)
    except RefusedError as refused:
        case.refused.append(f"{case.subject}, {case.form}: {refused}"[:200])
        return False
    right = o.bytes()
    for _ in range(TRIES):
        o.model = type(o.model).FromString(right)
        sites = bug.sites(o)
        if not sites:
            return False
        case.site = str(rng.choice(sites))
        done = bug.inject(o, case.site, rng)
        if done is None or not _seen(case, expected(truth, o.before, o.values(), done.place, o.recognisable()), done.detail):
            continue
        (folder / "candidate.onnx").write_bytes(o.bytes())
        case.candidate, case.options["input"] = str(folder / "candidate.onnx"), truth.x
        return True
    return False


def _image(case: Case, rng: np.random.Generator, folder: Path) -> Case:
    """Dumps of a right network behind an image read wrongly; it takes RGB, or BGR."""
    fitting = [(s, f) for s in SUBJECTS.values() for f in s.forms if s.config.num_classes == CLASSES and "hrvit" not in s.model]
    for i in rng.permutation(len(fitting)):
        subject, form = fitting[i]
        order = "bgr" if rng.random() < 0.3 else "rgb"
        truth, c = (r := reference(subject, rng, order)), Torch(r, form)
        case.kind, case.subject, case.site = "image", subject.name, "input"
        right = inputs.Way(int(min(subject.size) / 0.875), subject.size, bgr=order == "bgr")
        turned, coarse = case.bug == "input-orientation", case.bug == "input-decoder"
        path = inputs.picture(folder, rng, subject.size, turned=turned, coarse=coarse)
        changed, case.detail = IMAGES[case.bug].change(right, rng)
        case.detail += f", network of {order}"
        x, good = inputs.read(path, replace(right, **changed)), inputs.read(path, right)
        if x.shape != good.shape or np.abs(x - good).max() < LEVELS / 255 / max(inputs.IMAGENET[1]):
            case.tried.append((f"{subject.name}: {case.detail}", 0.0))
            continue
        style = files.draw(rng)
        case.form = form + _in_words(style)
        arrays = {"input": x} | files.values(c, files.chosen(c, style, rng), x=x)
        case.candidate = str(files.write(folder / "dump", arrays, style, tuple(c.graph.outputs.values())))
        case.expected = Expected(("input",), "input", "input", float(np.abs(x - good).max() / np.abs(good).max() / 4.8e-7))
        case.options = {"model": subject.model, "weights": str(truth.file(folder)), "image": str(path)}
        case.nodes = tuple(truth.graph.nodes)
        return case
    return case

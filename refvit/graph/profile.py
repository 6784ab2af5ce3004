"""Where the time of a model goes: a row for each step that a backend takes, as a table, as JSON and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from refvit.errors import ConfigError
from refvit.files import write_atomic
from refvit.graph.ir import Shape, dims

BAR, ROW, LEFT, WIDTH = 360, 18, 420, 900  # pixels of the picture
COLOURS = ("#4878a8", "#b05f3c", "#5f9650", "#8a6aa8", "#a89a4a", "#4a9a9a", "#a84a6e", "#777777")


@dataclass(frozen=True)
class Step:
    """One step: the node it belongs to, the kernel, seconds, multiply-accumulates, bytes of the memory it reads and writes.

    A buffer of which it reads a part counts whole. The first step's seconds hold the preparations of a call as well.

    Winograd's MACs are those of the convolution that it stands for, so that its GFLOP/s can exceed the machine's.
    """

    node: str
    kernel: str
    seconds: float
    macs: int
    bytes: int

    @property
    def gflops(self) -> float:
        """10^9 floating-point operations a second, two to a MAC."""
        return 2e-9 * self.macs / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Profile:
    """Steps in the order of the program, medians over runs; `seconds` is the median of whole calls."""

    name: str
    input_shape: Shape
    threads: int
    seconds: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        """The steps, the slowest first."""
        total = sum(s.seconds for s in self.steps) or 1.0
        lines = [f"{self.name}, input {dims(self.input_shape)}, {self.threads} threads: {1e3 * self.seconds:.3f} ms", ""]
        lines.append(f"{'node':<44} {'kernel':<22} {'us':>9} {'%':>5} {'MMACs':>9} {'GFLOP/s':>8} {'MB':>7}")
        for s in sorted(self.steps, key=lambda s: -s.seconds):
            share = 100 * s.seconds / total
            numbers = f"{1e6 * s.seconds:>9.1f} {share:>5.1f} {s.macs / 1e6:>9.2f} {s.gflops:>8.1f} {s.bytes / 1e6:>7.2f}"
            lines.append(f"{s.node[-44:]:<44} {s.kernel:<22} {numbers}")
        return "\n".join(lines)

    def by_kernel(self) -> dict[str, float]:
        """Seconds by kernel, the most first."""
        sums: dict[str, float] = {}
        for s in self.steps:
            sums[s.kernel] = sums.get(s.kernel, 0.0) + s.seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        steps = [vars(s) | {"gflops": s.gflops} for s in self.steps]
        plain = {"name": self.name, "input_shape": list(self.input_shape), "threads": self.threads, "seconds": self.seconds}
        return plain | {"steps": steps}

    def save(self, path: str | Path) -> None:
        """A picture, .svg: a bar for each step in the order of the program, a colour for each kernel."""
        if Path(path).suffix.lower() != ".svg":
            raise ConfigError(f"{path}: a name ending in .svg expected")
        write_atomic(Path(path), self._svg().encode())

    def _svg(self) -> str:
        kernels = self.by_kernel()
        colour = {k: COLOURS[min(i, len(COLOURS) - 1)] for i, k in enumerate(kernels)}
        longest = max((s.seconds for s in self.steps), default=1.0) or 1.0
        top = 40 + ROW * (len(kernels) + 1)
        height = top + ROW * len(self.steps) + 10
        title = f"{self.name}, {dims(self.input_shape)}, {self.threads} threads, {1e3 * self.seconds:.3f} ms"
        font = 'font-family="sans-serif" font-size="11"'
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" {font}>',
            f'<rect width="100%" height="100%" fill="white"/><text x="12" y="22" font-size="14">{escape(title)}</text>',
        ]
        total = sum(kernels.values()) or 1.0
        for i, (kernel, seconds) in enumerate(kernels.items()):
            y = 40 + ROW * i
            out.append(f'<rect x="12" y="{y}" width="12" height="12" fill="{colour[kernel]}"/>')
            out.append(f'<text x="30" y="{y + 10}">{escape(kernel)} {100 * seconds / total:.1f} %</text>')
        for i, s in enumerate(self.steps):
            y, width = top + ROW * i, BAR * s.seconds / longest
            out.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(s.node[-64:])}</text>')
            out.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="13" fill="{colour[s.kernel]}"/>')
            text = f"{1e6 * s.seconds:.1f} us" + (f", {s.gflops:.0f} GFLOP/s" if s.macs else "")
            out.append(f'<text x="{LEFT + width + 4:.1f}" y="{y + 11}">{text}</text>')
        return "\n".join([*out, "</svg>", ""])

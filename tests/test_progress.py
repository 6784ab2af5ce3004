"""A counter on the terminal while answers of many images go to a file, and nothing where there is no terminal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAT = Path(__file__).parent.parent / "examples" / "cat.jpg"
pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX only")


def run_on_a_terminal(arguments, out):
    """What a command writes to the terminal that is its standard error."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(out, "wb") as stdout:
        done = subprocess.Popen([sys.executable, "-m", "refvit", *arguments], stdout=stdout, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    assert done.wait() == 0
    return shown.decode()


def test_many_images_are_counted(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3):
        shutil.copy(CAT, folder / f"{i}.jpg")
    assert "3 images" in run_on_a_terminal(["infer", str(folder), "--json"], tmp_path / "out")
    assert len((tmp_path / "out").read_text().splitlines()) == 3


def test_one_image_is_not(tmp_path):
    assert "images/s" not in run_on_a_terminal(["infer", str(CAT), "--json"], tmp_path / "out")

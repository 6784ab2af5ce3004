"""The text of this backend's files as one number, taken before any of them is imported.

Modules are imported and kernels compiled as late as possible. Were a file edited or the package upgraded meanwhile, new kernels
would meet old plans, or old code be kept on disk as the new one's: both give wrong numbers. `LOADED` is what this process is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent


def fingerprint(folder: Path = HERE) -> str:
    """Of the names and contents of all Python files in a folder, as they are now."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


LOADED = fingerprint()

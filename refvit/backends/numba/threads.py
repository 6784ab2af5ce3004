"""How many threads to use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from refvit.errors import ConfigError


def check_threads(threads: int | None) -> int:
    """The number of threads to use: as given, or one for each core that this process may use."""
    if threads is None:
        return default_threads()
    if not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise ConfigError(f"threads: a whole number from 1 to 1024 expected, got {threads!r}")
    return int(threads)


def default_threads() -> int:
    """Physical cores among the processors that this process may run on, but no more than the quota of its control group."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Processors' worth of time that the control group grants, rounded up."""
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    if not limit:
        limit = [_read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")]
    if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit():
        return -(-int(limit[0]) // int(limit[1]))
    return 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""

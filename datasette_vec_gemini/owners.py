"""Whose a claim or a job is: runs have names by which other processes can tell whether they have died."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import uuid4

running: set[str] = set()
"""The owners of this process that are at work: one that could not give its claims back has ended all the same."""


def new_owner() -> str:
    """A name for a run of this process, by which others can tell whether it has died."""
    return f"{_host()}:{os.getpid()}:{uuid4().hex}"


def _host() -> str:
    """This machine, and on Linux which space of process numbers: containers may share a host's name."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}"


def has_died(owner: str) -> bool:
    """Whether the run that made a claim is known to have ended; elsewhere than here nothing is known."""
    host, pid, _ = owner.rsplit(":", 2)
    if host == _host() and int(pid) == os.getpid():
        return owner not in running
    if os.name != "posix" or host != _host():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def lives_elsewhere(owner: str) -> bool:
    """Whether a run is known to go on in another process of this machine; of an owner that is none nothing is."""
    try:
        host, pid, _ = owner.rsplit(":", 2)
        return os.name == "posix" and host == _host() and int(pid) != os.getpid() and not has_died(owner)
    except (ValueError, OverflowError):
        return False

"""Ports for servers that are started a while after theirs was chosen."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Below those that the system gives to connections, so that it is still free later."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

"""How a server is set up: one frozen object, checked where it is made."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mull.errors import RequestError

DEFAULT_PORT = 8642
LOG_FORMS = ("auto", "text", "json", "off")
PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Settings:
    """model: what is served where a request names none: a name in the store, or a path.

    hosts: further names the server may be called by (Host header), beside its address.
    Limits: max_body_bytes of a request (max_upload_bytes and max_import_bytes, where it is a file
    or an import), max_bodies_bytes of all under way, max_nesting of a request's JSON, max_queue
    requests that wait for a model, memory_limit bytes for all models together, idle_minutes until a
    model nobody uses is unloaded, keep_minutes that a finished answer can still be read by its id.
    strict_reasoning: refuse `reasoning_content` in a request, as the first deepseek-reasoner did.
    database_url: where conversations are kept; None is a file in MULL_HOME.
    watts and usd_per_kwh: what an answer's electricity is priced with; None for unknown.
    log: auto (text for a terminal, else json), text, json or off.
    """

    model: str = "smollm2-135m"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    hosts: Sequence[str] = ()
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    context: int | None = None
    cache: str = "auto"
    cache_tokens: int | None = None
    speculation: str = "auto"
    accounts: bool = False
    strict_reasoning: bool = False
    max_running: int = 64
    max_queue: int = 256
    max_body_bytes: int = 8 * 2**20
    max_upload_bytes: int = 32 * 2**20
    max_import_bytes: int = 100 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_nesting: int = 64
    max_connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: float = 10.0
    shutdown_seconds: float = 30.0
    memory_limit: int | None = None
    idle_minutes: float | None = 30.0
    keep_minutes: float = 10.0
    retention_days: float | None = None
    database_url: str | None = None
    watts: float | None = None
    usd_per_kwh: float | None = None
    log: str = "auto"
    page: Path = field(default=PAGE)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"port is {self.port}, but must be a number from 0 to 65535")
        if self.max_queue < 1 or self.max_running < 1:
            raise RequestError("the limits of running and waiting requests must be 1 or more")
        for name in ("memory_limit", "idle_minutes", "retention_days", "watts", "usd_per_kwh"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise RequestError(
                    f"{name.replace('_', ' ')} is {value:g}, but must be a number above 0"
                )
        if self.log not in LOG_FORMS:
            raise RequestError(f"log is {self.log!r}, but must be one of {', '.join(LOG_FORMS)}")
        if not self.is_loopback and not self.accounts:
            raise RequestError(
                f"host {self.host} can be reached from other machines, so it needs a key: "
                "make one with `mull keys add NAME` and add --accounts, or bind to 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

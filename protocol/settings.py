"""The settings' schema: what may be configured, its units and its limits. Pure; `supervisor/config.py` reads the files.

Every field has a default, so no file is needed. A value out of its range does not convert: one place knows the ranges.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from protocol import names

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Memory = Annotated[int, Meta(ge=1_048_576)]  # bytes
BackendKind = Literal["auto", "ollama", "openai_compatible", "builtin"]
RestartPolicy = Literal["never", "on_failure", "always"]
Restarter = Literal["chorus", "systemd"]
Place = tuple[str, int]  # an address and a port

BACKLOG = 1024  # clients wait there while a process is replaced; the kernel caps it at net.core.somaxconn

DEFAULT_URL = "http://127.0.0.1:11434"

# Options that make a model server load the model anew. One profile for the whole team, or every answer reloads the model.
LOAD_TIME_OPTIONS = frozenset({"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"})

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where this machine itself reaches who listens on all of them


class Backend(Struct, frozen=True, forbid_unknown_fields=True):
    """The model server. `url` None means the default address; `asked_for` in the config loader says whether it was set."""

    kind: BackendKind = "auto"
    url: str | None = None
    model: str | None = None
    api_key_file: str | None = None
    parallel: Count | None = None
    pace: Positive = 60.0  # tokens a second of the builtin backend: fast enough to read, slow enough to see it stream
    options: dict[str, Any] = {}


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    max_line_bytes: Annotated[int, Meta(ge=1024)] = 1_048_576
    max_reply_bytes: Annotated[int, Meta(ge=1024)] = 8_388_608
    max_buffered_bytes: Annotated[int, Meta(ge=65536)] = 67_108_864
    answer_tokens: Count = 2048  # num_predict; Ollama's own bound is ten times the context
    connections: Count = 4096
    in_flight: Count = 16
    first_byte: Positive = 600.0  # queue, load and prefill together: no status line comes before the first token
    silence: Positive = 60.0
    write_timeout: Positive = 30.0


class Supervision(Struct, frozen=True, forbid_unknown_fields=True):
    restart: RestartPolicy = "always"
    intensity: Annotated[int, Meta(ge=0)] = 5
    period: Positive = 30.0
    health_period: Positive = 2.0
    hung_after: Positive = 6.0
    grace: Seconds = 10.0
    max_rss_bytes: Memory | None = None  # more than this, and an idle process is replaced; shared pages count too
    on_supervisor_exit: Literal["keep", "stop"] = "keep"
    restarter: Restarter = "chorus"  # exactly one: where it is systemd, the supervisor only observes and delegates


class SpecialistSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said of one specialist. None means the default of the team or of its persona."""

    port: Port | None = None
    model: str | None = None
    persona: str | None = None
    description: str | None = None
    capabilities: list[str] | None = None
    options: dict[str, Any] = {}
    restart: RestartPolicy | None = None
    max_rss_bytes: Memory | None = None
    command: Annotated[list[str], Meta(min_length=1)] | None = None


class Gateway(Struct, frozen=True, forbid_unknown_fields=True):
    """`allowed_hosts` are names by which others call it; `tls_certificate` and `tls_key` are PEM files, both or none.

    `require_key` asks for a key on this machine too, `behind_proxy` believes a proxy what it says of Host and TLS.

    `restart` and `max_rss_bytes` None mean those of the team, `engram_url` None our own store of conversations.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8003
    also_ports: Annotated[list[Port], Meta(max_length=8)] = []
    allowed_origins: list[str] = []
    allowed_hosts: list[str] = []
    tls_certificate: str | None = None
    tls_key: str | None = None
    behind_proxy: bool = False
    require_key: bool = False
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 4_194_304
    requests_per_minute: Count = 600  # of one key, or of one client without a key
    in_flight: Count = 256  # requests under way of one key, or of all clients without one
    streams: Count = 1024
    engram_url: str | None = None
    restart: RestartPolicy | None = None
    max_rss_bytes: Memory | None = None


class History(Struct, frozen=True, forbid_unknown_fields=True):
    retention_days: Positive = 90.0


class Cache(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    similarity: Annotated[float, Meta(ge=0, le=1)] = 0.92


class Cost(Struct, frozen=True, forbid_unknown_fields=True):
    """Per million tokens, for estimates."""

    prompt: Annotated[float, Meta(ge=0)] = 0.0
    completion: Annotated[float, Meta(ge=0)] = 0.0


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration, after all layers."""

    host: str = "127.0.0.1"
    port_base: Annotated[int, Meta(ge=1, le=65435)] = 45000
    roster: list[str] = field(default_factory=lambda: list(names.ROSTER))
    allow_users: list[str] = []
    backend: Backend = Backend()
    limits: Limits = Limits()
    supervision: Supervision = Supervision()
    specialists: dict[str, SpecialistSettings] = {}
    gateway: Gateway = Gateway()
    history: History = History()
    roles: dict[str, str] = {}
    cache: Cache = Cache()
    cost: Cost = Cost()


class SpecialistConfig(Struct, frozen=True, kw_only=True, tag_field="child", tag="specialist"):
    """Everything one daemon needs, resolved: it reads nothing else.

    `addresses` are the hosts it listens on, all with the same port. `model` None lets the backend choose.
    `url_asked_for` is whether a user named the model server: then an absent one is an error, never an echo.
    `allowed_uids` are the users of this machine that may talk to it; our own and root always may.
    `command` is a program that takes the daemon's place, started in `command_dir`.
    """

    name: str
    addresses: list[str]
    port: int
    role: str = ""
    persona: str
    description: str
    capabilities: list[str]
    model: str | None
    backend: Backend
    url: str
    url_asked_for: bool
    api_key: str | None
    options: dict[str, Any]
    limits: Limits
    grace: float
    retention_days: float
    allowed_uids: list[int]
    data_dir: str
    state_dir: str
    log_dir: str | None = None  # None: to standard error
    command: list[str] | None = None
    command_dir: str | None = None

    @property
    def ai_id(self) -> str:
        return names.ai_id(self.name)

    @property
    def places(self) -> list[Place]:
        """Where it listens, first where it is asked how it is."""
        return [(address, self.port) for address in self.addresses]

    def elsewhere(self, places: list[Place]) -> SpecialistConfig:
        """The same, listening there."""
        return replace(self, addresses=[address for address, _ in places], port=places[0][1])

    def setting_of(self, port: int) -> str:
        """The key of the configuration that would change this port of it."""
        return f"specialists.{self.name}.port"


class Colleague(Struct, frozen=True):
    """Where a specialist is reached."""

    name: str
    host: str
    port: int


class GatewayConfig(Struct, frozen=True, kw_only=True, tag_field="child", tag="gateway"):
    """Everything the gateway needs, resolved: it reads nothing else.

    `module` is the one whose `run` it is. `settings` has the files of TLS by their full paths. `roster` is who there is as
    long as no supervisor says it: what else changes of a specialist is nothing to this process. `socket` is the control
    socket. `allowed_uids` are the users of this machine that may talk to specialists; our own and root always may.
    """

    name: str = names.GATEWAY
    module: str = "supervisor.gateway.process"
    places: list[Place]
    settings: Gateway
    limits: Limits
    roster: list[Colleague]
    grace: float
    retention_days: float
    allowed_uids: list[int]
    socket: str
    data_dir: str
    state_dir: str
    log_dir: str | None = None  # None: to standard error

    @property
    def ai_id(self) -> str:
        return self.name

    @property
    def port(self) -> int:
        return self.places[0][1]

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        host, port = self.places[0]
        host = EVERY_ADDRESS.get(host, host)
        scheme = "https" if self.settings.tls_certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def elsewhere(self, places: list[Place]) -> GatewayConfig:
        """The same, listening there."""
        return replace(self, places=places)

    def setting_of(self, port: int) -> str:
        """The key of the configuration that would change this port of it."""
        return "gateway.port" if port == self.port else "gateway.also_ports"


ChildConfig = SpecialistConfig | GatewayConfig  # of a process that is kept alive

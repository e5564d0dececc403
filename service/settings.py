"""The service's settings, from ``VIDLEX_*`` environment variables and arguments of ``load_settings``."""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode, SettingsConfigDict

from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.background_settings import BackgroundSettings
from vidlex.service.bounds import (
    DEFAULT_MAX_LABELS,
    DEFAULT_MAX_NAMESPACE_BYTES,
    NAMESPACE_PATTERN,
    NAMESPACE_RULE,
    URL_HOST_PATTERN,
)
from vidlex.service.machine.cpus import num_cpus

ENV_PREFIX = "VIDLEX_"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
# Not settings of the service
_READ_ELSEWHERE = {"VIDLEX_CACHE_DIR", "VIDLEX_WHEELS", "VIDLEX_URL", "VIDLEX_API_KEY", "VIDLEX_CA_FILE"}
_JSON_LIST_RULE = 'must be a JSON list, such as ["{}"]'
_LIST_EXAMPLES = {
    "allowed_hosts": "tags.example",
    "allowed_models": "open_clip:ViT-B-32:openai",
    "cors_origins": "https://app.example",
    "fetch_buckets": "team-videos",
    "fetch_hosts": "files.example",
    "private_networks": "10.0.0.0/24",
    "trusted_proxies": "10.0.0.5",
    "webhook_hosts": "hooks.example",
}
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@*\s]+")
_PATTERN_RULES = {
    "namespace": NAMESPACE_RULE,
    "device": "auto, mps, cpu, cuda, cuda:all or a list such as cuda:0,cuda:1",
}
# By pydantic's error type; filled in with the error's context.
_RULES = {
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "path_type": "must be a path",
    "extra_forbidden": "is not a setting",
}
_MAX_INPUT_CHARS = 100


class SettingsError(ValueError):
    """One line per invalid variable. Never contains a secret."""


def default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share"
    return root / "vidlex"


def _default_decode_workers() -> int:
    return min(8, num_cpus())


class Settings(BackgroundSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    # store and address
    data_dir: Path = Field(default_factory=default_data_dir, description="folder of the labels and temporary uploads")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; a public one requires API keys")
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    redis_url: SecretStr | None = Field(None, description="redis://, rediss:// or unix://; empty: an embedded store")
    redis_password_file: Path | None = Field(None, description="file with the password for redis_url")
    allow_volatile_store: bool = Field(
        False, description="accept a store that evicts labels or keeps no append-only file"
    )
    namespace: str = Field("default", pattern=f"^{NAMESPACE_PATTERN}$", description="of requests that name none")
    max_namespaces: int = Field(64, ge=1, description="namespaces in memory; the client with the most loses one")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="accepted Host headers, as a JSON list; empty: loopback names if host is one, else any"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose web pages may use the service, as a JSON list; *: any; empty: none"
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="addresses or networks whose X-Forwarded-For is believed, as a JSON list; empty: none"
    )

    # connections
    max_connections: int = Field(4096, ge=16, description="connections of all clients")
    max_connections_per_address: int = Field(1024, ge=1, description="connections of one address but a trusted proxy")
    header_timeout_seconds: float = Field(20.0, gt=0, description="timeout of a request's line and headers")
    keep_alive_seconds: int = Field(15, ge=1, description="how long a connection may wait for its next request")
    send_timeout_seconds: float = Field(
        30.0, gt=0, description="after which a client that takes less than 1 KiB/s of its response is disconnected"
    )

    max_labels: int = Field(DEFAULT_MAX_LABELS, ge=1, description="labels per namespace")
    max_namespace_bytes: int = Field(
        DEFAULT_MAX_NAMESPACE_BYTES, ge=1, description="names and metadata of a namespace's labels, with 256 for each"
    )

    # access
    api_keys_file: Path | None = Field(None, description="API keys in addition to the stored ones, one per line")
    insecure: bool = Field(False, description="require no API keys, on any address")
    rate_limit_per_second: float = Field(100.0, ge=0, description="per API key and replica; 0: unlimited")
    rate_limit_burst: int = Field(200, ge=1, description="size of a burst of requests, per API key")

    # model
    model: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="zoo name, checkpoint folder, clip, open_clip:..., transformers:... or dummy",
    )
    allowed_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="what POST /models:prepare may load in addition to VIDLEX_MODEL and the zoo, as a JSON list",
    )
    keep_videos: int = Field(16, ge=0, description="recent videos held in memory to compare models on")
    keep_video_bytes: int = Field(256 * 2**20, ge=0, description="of the frames of all recent videos")
    collect_statistics: bool = Field(
        False, description="keep mean and covariance of classified videos' features, for PUT /calibration"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|mps|cuda|cuda:all|cpu(,cpu)*|cuda:\d+(,cuda:\d+)*)$",
        description="cuda:all or a list such as cuda:0,cuda:1 loads a copy of the model per device",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the video encoder; auto: the fastest one that passes a check against float32"
    )

    # label index
    index: Literal["exact", "approximate"] = Field(
        "exact",
        description="approximate: compressed codes from 20,000 labels and up to top_k 250; may miss labels",
    )
    index_vectors: Literal["float32", "float16"] = Field("float32", description="float16 halves the memory")

    # uploads
    max_upload_bytes: int = Field(512 * 2**20, ge=1, description="of one upload")
    max_spool_bytes: int = Field(4 * 2**30, ge=1, description="of all videos at work, half per client")
    max_json_bytes: int = Field(8 * 2**20, ge=1024, description="of one JSON body")
    upload_idle_seconds: float = Field(20.0, gt=0, description="timeout between two chunks of an upload")
    upload_timeout_seconds: float = Field(600.0, gt=0, description="timeout of one upload")

    # videos
    max_duration_ms: int = Field(2 * 3600 * 1000, ge=1, description="of a video")
    max_pixels: int = Field(8192 * 4320, ge=1, description="width x height of a frame")
    max_side: int = Field(8192, ge=1, description="longer side of a frame, in pixels")
    max_frames: int = Field(512, ge=1, description="frames sampled per request, or per segment")
    # 8 frames per segment of 4 s for 2 hours
    max_total_frames: int = Field(16_384, ge=1, description="frames sampled per request, of all segments")
    max_looks: int = Field(1024, ge=1, description="frames sampled of a video by its shots")
    decode_timeout_seconds: float = Field(
        60.0, gt=0, description="timeout of decoding up to 32 frames, after which the decode process is killed"
    )
    decode_memory_bytes: int = Field(2 * 2**30, ge=2**28, description="address space of one decode process")
    decode_total_memory_bytes: int | None = Field(
        None,
        ge=2**26,
        description="memory of all files being decoded; default: half of the machine's or container's",
    )
    require_isolation: Literal["none", "partial", "full"] = Field(
        "none", description="refuse to start with decode processes that are less isolated"
    )

    decoder: Literal["auto", "pyav", "torchcodec"] = Field(
        "auto", description="auto: PyAV; torchcodec: PyAV where torchcodec cannot read a file"
    )

    # queues, caches and timeouts
    decode_workers: int = Field(
        default_factory=_default_decode_workers, ge=1, le=256, description="decode processes; default: CPUs, at most 8"
    )
    max_waiting_videos: int = Field(
        64, ge=1, description="concurrent classify requests, half per client; further ones get 429"
    )
    max_waiting_uploads: int = Field(128, ge=1, description="concurrent uploads, half per client; further ones get 429")
    max_queued_frames: int = Field(4096, ge=1, description="decoded frames queued for the encoder, half per client")
    max_queued_labels: int = Field(8192, ge=1, description="label names queued for the encoder, half per client")
    max_batch_frames: int = Field(128, ge=1, description="frames per forward pass")
    max_batch_labels: int = Field(32, ge=1, description="labels per forward pass; videos are encoded in between")
    feature_cache_bytes: int = Field(64 * 2**20, ge=0, description="features of recent videos; 0: no cache")
    candidate_cache_bytes: int = Field(
        64 * 2**20, ge=0, description="vectors of recent candidate_labels, per model; 0: no cache"
    )
    label_cache_bytes: int = Field(256 * 2**20, ge=0, description="label vectors on disk; 0: no cache")
    request_timeout_seconds: float = Field(120.0, gt=0, description="timeout of one classify request after its upload")
    label_timeout_seconds: float = Field(900.0, gt=0, description="timeout of encoding a batch of labels")
    revision_wait_seconds: float = Field(2.0, ge=0, description="how long a request waits for min_revision before 409")
    shutdown_grace_seconds: float = Field(30.0, ge=0, description="how long a shutdown waits for requests in progress")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        description="how long a shutdown serves new requests while /readyz answers 503, so that proxies send no more",
    )

    # logs and traces
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that is logged"
    )
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")
    audit_log: Literal["file", "stdout", "off"] = Field(
        "file",
        description="changes and refusals with who made them, as JSON lines; file: audit.jsonl in the data folder",
    )
    traces: Literal["off", "otlp"] = Field("off", description="otlp: export by OpenTelemetry, configured by OTEL_*")

    @field_validator(*_LIST_EXAMPLES, mode="before")
    @classmethod
    def _parse_list(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ValueError(_JSON_LIST_RULE.format(_LIST_EXAMPLES[str(info.field_name)]))
        return tuple(value)

    @field_validator("cors_origins")
    @classmethod
    def _require_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.lower() for origin in value)
        if not all(map(_ORIGIN.fullmatch, origins)):
            raise ValueError("must contain origins such as https://app.example, without a path, or *")
        return origins

    @field_validator("fetch_hosts", "webhook_hosts")
    @classmethod
    def _require_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.strip().lower().strip("[]").removesuffix(".") for host in value)
        if not all(re.fullmatch(URL_HOST_PATTERN, host) for host in hosts):
            raise ValueError("must contain hosts, without https:// and port, *.HOST, or *")
        return hosts

    @field_validator("trusted_proxies", "private_networks")
    @classmethod
    def _require_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(ipaddress.ip_network(text)) for text in value)
        except ValueError:
            raise ValueError("must contain IP addresses, or networks such as 10.0.0.0/24") from None

    @field_validator("data_dir", "redis_password_file", "api_keys_file", "jobs_dir", "videos_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("must be a path; its home folder cannot be determined") from None

    @field_validator("redis_password_file", "api_keys_file")
    @classmethod
    def _require_readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                value.read_bytes()
            except OSError as error:
                raise ValueError(f"must be a readable file: {error.strerror}") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _require_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.port
        except ValueError:  # its text may contain the password
            raise ValueError("must be a URL such as redis://host:6379/0; its host or port is malformed") from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @property
    def redis_password(self) -> str | None:
        return None if self.redis_password_file is None else self.redis_password_file.read_text().strip()

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS or self.host.startswith("127.")

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def downloads_dir(self) -> Path:
        return self.data_dir / "downloads"

    @property
    def label_cache_dir(self) -> Path:
        return self.data_dir / "label-cache"

    def resolve_allowed_hosts(self) -> frozenset[str] | None:
        """Accepted Host headers, without the port; None: any.

        On loopback only loopback names are accepted: otherwise a web page could reach the service through a DNS name
        that resolves to 127.0.0.1 (DNS rebinding).
        """
        if self.allowed_hosts:
            return None if "*" in self.allowed_hosts else frozenset(h.lower() for h in self.allowed_hosts)
        if self.on_loopback:
            return frozenset((*LOOPBACK_HOSTS, self.host))
        return None


def load_settings(**overrides: Any) -> Settings:
    """Read the environment. ``overrides`` take precedence unless they are None. Raises SettingsError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(map(_describe, error.errors(include_url=False)))) from None


def _describe(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    if error["type"] == "string_pattern_mismatch":
        rule = f"must be {_PATTERN_RULES[name]}"
    elif error["type"] in _RULES:
        rule = _RULES[error["type"]].format_map(error.get("ctx", {}))
    else:
        rule = error["msg"].removeprefix("Value error, ")
    line = f"{ENV_PREFIX}{name.upper()} {rule}"
    field = Settings.model_fields.get(name)
    if field is None or SecretStr in get_args(field.annotation):
        return line
    return f"{line}; got {str(error['input'])[:_MAX_INPUT_CHARS]!r}"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | _READ_ELSEWHERE
    lines = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines

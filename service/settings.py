"""Every setting of the service: an environment variable ``VIDLEX_*`` or an argument of ``load_settings``.

Checked once, at the start, with messages that name the variable. Imports nothing of ours.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "VIDLEX_"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_READ_ELSEWHERE = {"VIDLEX_CACHE_DIR", "VIDLEX_LLM_WHEEL", "VIDLEX_URL", "VIDLEX_API_KEY"}
"""Variables of the same prefix that other parts read by themselves."""


class SettingsError(ValueError):
    """A setting has a value that cannot be used. The message names the variable and never repeats a secret."""


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/vidlex``, or ``~/.local/share/vidlex``."""
    base = os.environ.get("XDG_DATA_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share"
    return root / "vidlex"


def _default_decode_workers() -> int:
    return max(1, min(8, os.cpu_count() or 1))


class Settings(BaseSettings):
    """Use ``load_settings`` to get one with readable errors."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    # where things are
    data_dir: Path = Field(default_factory=default_data_dir, description="labels and temporary uploads live here")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; a public one needs API keys")
    port: int = Field(8000, ge=0, le=65535, description="0 takes any free port")
    redis_url: SecretStr | None = Field(None, description="redis://, rediss:// or unix://; empty: an embedded store")
    redis_password_file: Path | None = Field(None, description="holds the password for redis_url, which then has none")
    namespace: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    max_namespaces: int = Field(64, ge=1, description="kept in memory; the longest unused one makes room")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host headers to answer, as a JSON list; empty: loopback names only if host is one, else any"
    )

    max_labels: int = Field(1_000_000, ge=1, description="labels in one namespace; more are refused")

    # who may use it
    api_keys_file: Path | None = Field(None, description="API keys beside those in the store, one a line")
    insecure: bool = Field(False, description="let everybody in who reaches the port")
    rate_limit_per_second: float = Field(100.0, ge=0, description="requests of one API key, per replica; 0: unlimited")
    rate_limit_burst: int = Field(200, ge=1, description="requests of one API key at once")

    # the model
    model: str = Field("emoji-small", min_length=1, description="zoo name, checkpoint folder, open_clip:... or dummy")
    allowed_models: tuple[str, ...] = Field(
        (), description="models beside VIDLEX_MODEL and the zoo's that POST /models:prepare may load, as a JSON list"
    )
    keep_videos: int = Field(16, ge=0, description="frames of the last videos, to compare models on; in memory only")
    keep_video_bytes: int = Field(256 * 2**20, ge=0, description="all kept frames together")
    device: str = Field(
        "auto",
        pattern=r"^(auto|mps|cuda|cuda:all|cpu(,cpu)*|cuda:\d+(,cuda:\d+)*)$",
        description="cuda:all or a list such as cuda:0,cuda:1: each device has a copy of the model",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the video encoder; auto: the fastest that is verified against float32 at the start"
    )

    # searching the labels
    index: Literal["exact", "approximate"] = Field(
        "exact", description="approximate: from 20,000 labels on, top_k up to 250 by short codes; a label may be missed"
    )
    index_vectors: Literal["float32", "float16"] = Field("float32", description="float16 takes half the memory")

    # one upload
    max_upload_bytes: int = Field(512 * 2**20, ge=1)
    max_spool_bytes: int = Field(4 * 2**30, ge=1, description="all uploads on disk at the same time")
    max_json_bytes: int = Field(8 * 2**20, ge=1024)
    upload_idle_seconds: float = Field(20.0, gt=0, description="longest wait for the next piece of an upload")
    upload_timeout_seconds: float = Field(600.0, gt=0, description="longest time for one whole upload")

    # one video
    max_duration_ms: int = Field(2 * 3600 * 1000, ge=1)
    max_pixels: int = Field(8192 * 4320, ge=1, description="width x height of a frame")
    max_side: int = Field(8192, ge=1)
    max_fps: float = Field(240.0, gt=0)
    max_frames: int = Field(512, ge=1, description="frames sampled for one request")
    decode_timeout_seconds: float = Field(60.0, gt=0, description="after this the decode process is killed")
    decode_memory_bytes: int = Field(2 * 2**30, ge=2**28, description="address space of one decode process")

    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = Field(
        "auto", description="who reads a file first; auto: PyAV, and decord where that fails"
    )

    # work that waits
    decode_workers: int = Field(default_factory=_default_decode_workers, ge=1, le=256)
    max_waiting_videos: int = Field(64, ge=1, description="classify requests at work or waiting; more get 429")
    max_waiting_uploads: int = Field(128, ge=1, description="uploads being received; more get 429")
    max_queued_frames: int = Field(4096, ge=1, description="decoded frames that wait for the encoder")
    max_queued_labels: int = Field(4096, ge=1, description="label names that wait for the encoder")
    max_batch_frames: int = Field(128, ge=1, description="frames of one forward pass, over all videos in it")
    batch_delay_ms: float = Field(
        0.0, ge=0, le=1000, description="longest wait of a decoded video for others being decoded, to share a pass"
    )
    max_batch_labels: int = Field(32, ge=1, description="labels encoded before a waiting video gets its turn")
    feature_cache_bytes: int = Field(64 * 2**20, ge=0, description="features of recent videos; 0: none are kept")
    candidate_cache_bytes: int = Field(
        64 * 2**20, ge=0, description="vectors of recent candidate_labels, per model; 0: none are kept"
    )
    label_cache_bytes: int = Field(256 * 2**20, ge=0, description="label vectors kept on disk; 0: none are kept")
    request_timeout_seconds: float = Field(120.0, gt=0, description="longest work for one classify request")
    label_timeout_seconds: float = Field(900.0, gt=0, description="longest wait for a batch of labels")
    revision_wait_seconds: float = Field(2.0, ge=0, description="longest wait for a request's min_revision; then 409")
    shutdown_grace_seconds: float = Field(30.0, ge=0, description="time for requests in flight when stopping")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        description="when stopping, refuse new requests with an answer for at least so long",
    )

    # logs and traces
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    traces: Literal["off", "otlp"] = Field("off", description="otlp: by OpenTelemetry, to where OTEL_* variables say")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("redis_password_file", "api_keys_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        value = value.expanduser().absolute()
        try:
            value.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @property
    def redis_password(self) -> str | None:
        """From its file, without the line's end; None: redis_url tells, or there is none."""
        return None if self.redis_password_file is None else self.redis_password_file.read_text().strip()

    @property
    def on_loopback(self) -> bool:
        """Only programs on this machine can reach the service."""
        return self.host in LOOPBACK_HOSTS or self.host.startswith("127.")

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def label_cache_dir(self) -> Path:
        return self.data_dir / "label-cache"

    def answered_hosts(self) -> frozenset[str] | None:
        """Host names (no port) that requests may be addressed to; None: any.

        A service on a loopback address answers loopback names alone, so that a web page cannot reach it through
        a DNS name of its own that resolves to 127.0.0.1.
        """
        if self.allowed_hosts:
            return None if "*" in self.allowed_hosts else frozenset(h.lower() for h in self.allowed_hosts)
        if self.on_loopback:
            return frozenset((*LOOPBACK_HOSTS, self.host))
        return None


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; ``overrides`` win, and None among them means "not given".

    Raises SettingsError with one line for each wrong variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            name = str(item["loc"][0]) if item["loc"] else ""
            lines.append(f"{ENV_PREFIX}{name.upper()}: {item['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(lines)) from None
    except ValueError as error:  # a tuple that is not JSON, from the environment
        raise SettingsError(f"a {ENV_PREFIX} variable cannot be read: {error}") from None


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """``VIDLEX_*`` variables that nothing reads, with the closest known name: most often a slip of the pen."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | _READ_ELSEWHERE
    lines = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines

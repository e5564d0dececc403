"""Settings: sources, validation and messages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidlex.service.settings import SettingsError, load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _no_vidlex_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VIDLEX_"):
            monkeypatch.delenv(name)


def test_defaults_are_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = load_settings()
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8000, None)
    assert settings.data_dir == tmp_path / "vidlex"
    assert settings.max_upload_bytes == 512 * 2**20
    assert settings.decode_workers >= 1


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_PORT", "9001")
    monkeypatch.setenv("VIDLEX_MODEL", "dummy")
    assert load_settings().port == 9001
    assert load_settings(port=9002, model=None).port == 9002
    assert load_settings(port=9002, model=None).model == "dummy"


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_REDIS_URL", "")
    assert load_settings().redis_url is None


HOSTS_RULE = 'must be a JSON list, such as ["tags.example"]'
URL_HOSTS_RULE = "must contain hosts, without https:// and port, *.HOST, or *"
ORIGINS_RULE = "must contain origins such as https://app.example, without a path, or *"
DEVICE_RULE = "must be auto, mps, cpu, cuda, cuda:all or a list such as cuda:0,cuda:1"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("PORT", "70000", "must be at most 65535"),
        ("PORT", "-1", "must be at least 0"),
        ("PORT", "many", "must be an integer"),
        ("PORT", "1.5", "must be an integer"),
        ("MAX_UPLOAD_BYTES", "0", "must be at least 1"),
        ("UPLOAD_IDLE_SECONDS", "fast", "must be a number"),
        ("UPLOAD_IDLE_SECONDS", "0", "must be greater than 0.0"),
        ("INSECURE", "perhaps", "must be true or false"),
        ("ALLOWED_HOSTS", "tags.example", HOSTS_RULE),
        ("ALLOWED_HOSTS", '"tags.example"', HOSTS_RULE),
        ("ALLOWED_HOSTS", "[1]", HOSTS_RULE),
        ("CORS_ORIGINS", "https://app.example", 'must be a JSON list, such as ["https://app.example"]'),
        ("CORS_ORIGINS", '["app.example"]', ORIGINS_RULE),
        ("WEBHOOK_HOSTS", "hooks.example", 'must be a JSON list, such as ["hooks.example"]'),
        ("WEBHOOK_HOSTS", '["https://hooks.example"]', URL_HOSTS_RULE),
        ("FETCH_HOSTS", '["files.example:8443"]', URL_HOSTS_RULE),
        ("FETCH_HOSTS", '["**.example"]', URL_HOSTS_RULE),
        ("CORS_ORIGINS", '["https://app.example/"]', ORIGINS_RULE),
        ("CORS_ORIGINS", '["https://*.example"]', ORIGINS_RULE),
        ("TRUSTED_PROXIES", "10.0.0.5", 'must be a JSON list, such as ["10.0.0.5"]'),
        ("TRUSTED_PROXIES", '["proxy"]', "must contain IP addresses, or networks such as 10.0.0.0/24"),
        ("ALLOWED_MODELS", "{}", 'must be a JSON list, such as ["open_clip:ViT-B-32:openai"]'),
        ("LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
        ("DEVICE", "toaster", DEVICE_RULE),
        ("DEVICE", "cpu,cuda:0", DEVICE_RULE),
        ("DEVICE", "cuda:0,", DEVICE_RULE),
        ("NAMESPACE", "Not Allowed", "must be 1 to 64 of a-z 0-9 _ -, the first a letter or digit"),
        ("API_KEYS_FILE", "/nowhere/keys", "must be a readable file: No such file or directory"),
        ("DATA_DIR", "~no-such-user/x", "must be a path; its home folder cannot be determined"),
    ],
)
def test_invalid_value_is_reported_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(f"VIDLEX_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"VIDLEX_{name} {rule}; got {value!r}"


def test_list_is_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_ALLOWED_HOSTS", '["tags.example", "other.example"]')
    monkeypatch.setenv("VIDLEX_ALLOWED_MODELS", "")
    assert load_settings().allowed_hosts == ("tags.example", "other.example")
    assert load_settings().allowed_models == ()


@pytest.mark.parametrize("value", ["auto", "cpu,cpu", "cuda", "cuda:1", "cuda:all", "cuda:0,cuda:1,cuda:3"])
def test_device_accepts_lists(value: str) -> None:
    assert load_settings(device=value).device == value


def test_all_invalid_variables_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_PORT", "-1")
    monkeypatch.setenv("VIDLEX_DECODE_WORKERS", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "VIDLEX_PORT" in str(caught.value) and "VIDLEX_DECODE_WORKERS" in str(caught.value)


def test_password_is_never_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_REDIS_URL", "http://:sesame@db")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == "VIDLEX_REDIS_URL must start with redis://, rediss:// or unix://"
    assert "sesame" not in repr(load_settings(redis_url="redis://:sesame@db"))


def test_unknown_variable_suggests_the_closest_name() -> None:
    lines = unknown_variables({"VIDLEX_PROT": "1", "VIDLEX_PORT": "1", "VIDLEX_CACHE_DIR": "/x", "HOME": "/"})
    assert lines == ["VIDLEX_PROT is not a setting; did you mean VIDLEX_PORT?"]


def test_loopback_accepts_only_loopback_hosts() -> None:
    assert load_settings().resolve_allowed_hosts() == {"localhost", "127.0.0.1", "::1"}
    assert load_settings(host="0.0.0.0").resolve_allowed_hosts() is None
    assert load_settings(allowed_hosts=("Tags.Example",)).resolve_allowed_hosts() == {"tags.example"}
    assert load_settings(allowed_hosts=("*",)).resolve_allowed_hosts() is None

"""Settings: where they come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidlex.service.settings import SettingsError, load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("VIDLEX_"):
            monkeypatch.delenv(name)


def test_defaults_are_for_one_person_on_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = load_settings()
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8000, None)
    assert settings.data_dir == tmp_path / "vidlex"
    assert settings.max_upload_bytes == 512 * 2**20
    assert settings.decode_workers >= 1


def test_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_PORT", "9001")
    monkeypatch.setenv("VIDLEX_MODEL", "dummy")
    assert load_settings().port == 9001
    assert load_settings(port=9002, model=None).port == 9002
    assert load_settings(port=9002, model=None).model == "dummy"


def test_empty_variable_means_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_REDIS_URL", "")
    assert load_settings().redis_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VIDLEX_PORT", "70000"),
        ("VIDLEX_PORT", "many"),
        ("VIDLEX_MAX_UPLOAD_BYTES", "0"),
        ("VIDLEX_DEVICE", "toaster"),
        ("VIDLEX_DEVICE", "cpu,cuda:0"),
        ("VIDLEX_DEVICE", "cuda:0,"),
        ("VIDLEX_NAMESPACE", "Not Allowed"),
        ("VIDLEX_LOG_LEVEL", "loud"),
        ("VIDLEX_ALLOWED_HOSTS", "not json"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name if name != "VIDLEX_ALLOWED_HOSTS" else "(?i)allowed_hosts"):
        load_settings()


@pytest.mark.parametrize("value", ["auto", "cpu,cpu", "cuda", "cuda:1", "cuda:all", "cuda:0,cuda:1,cuda:3"])
def test_devices_may_be_several(value: str) -> None:
    assert load_settings(device=value).device == value


def test_several_wrong_values_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_PORT", "-1")
    monkeypatch.setenv("VIDLEX_DECODE_WORKERS", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "VIDLEX_PORT" in str(caught.value) and "VIDLEX_DECODE_WORKERS" in str(caught.value)


def test_a_password_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_REDIS_URL", "http://:sesame@db")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "VIDLEX_REDIS_URL" in str(caught.value) and "sesame" not in str(caught.value)
    assert "sesame" not in repr(load_settings(redis_url="redis://:sesame@db"))


def test_a_misspelt_variable_is_told_with_the_likely_name() -> None:
    lines = unknown_variables({"VIDLEX_PROT": "1", "VIDLEX_PORT": "1", "VIDLEX_CACHE_DIR": "/x", "HOME": "/"})
    assert lines == ["VIDLEX_PROT is not a setting; did you mean VIDLEX_PORT?"]


def test_loopback_answers_loopback_names_only() -> None:
    assert load_settings().answered_hosts() == {"localhost", "127.0.0.1", "::1"}
    assert load_settings(host="0.0.0.0").answered_hosts() is None
    assert load_settings(allowed_hosts=("Tags.Example",)).answered_hosts() == {"tags.example"}
    assert load_settings(allowed_hosts=("*",)).answered_hosts() is None

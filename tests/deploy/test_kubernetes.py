"""The Kubernetes manifests against their schema and against docker/; kubeconform too, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import jsonschema_rs
import pytest
import yaml

from support.topology import ROOT
from vidlex.service.settings import unknown_variables

FOLDER = ROOT / "docker" / "kubernetes"
SCHEMA: dict[str, Any] = json.loads((ROOT / "tests" / "deploy" / "schemas" / "kubernetes.json").read_text())
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def documents(name: str = "") -> list[dict[str, Any]]:
    return [found for file in ([name] if name else FILES) for found in yaml.safe_load_all((FOLDER / file).read_text())]


def kind(name: str) -> list[dict[str, Any]]:
    return [found for found in documents() if found["kind"] == name]


def pods() -> list[dict[str, Any]]:
    return [found["spec"]["template"]["spec"] for name in ("Deployment", "StatefulSet", "Job") for found in kind(name)]


def errors(document: dict[str, Any]) -> list[str]:
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{SCHEMA['kinds'][document['kind']]}"}
    return [error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", FILES)
def test_the_manifests_fit_the_schema(name: str) -> None:
    found = documents(name)
    assert found
    for document in found:
        assert errors(document) == [], f"{name}: {document['kind']}"
        document["no_such_field"] = 1
        assert errors(document), "the check can fail"


def test_a_wrong_field_deep_inside_is_found() -> None:
    (deployment,) = kind("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["prot"] = 1
    assert errors(deployment)


@pytest.mark.skipif(shutil.which("kubeconform") is None, reason="kubeconform is not installed")
def test_kubeconform_accepts_them() -> None:
    words = ["kubeconform", "-strict", "-summary", *(str(FOLDER / name) for name in FILES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_is_applied_or_explained() -> None:
    text = (FOLDER / "README.md").read_text()
    assert set(KUSTOMIZATION["resources"]) <= set(FILES)
    for name in set(FILES) - set(KUSTOMIZATION["resources"]):
        assert name in text, name
    images = {container["image"].partition(":")[0] for pod in pods() for container in containers(pod)}
    assert images == {image["name"] for image in KUSTOMIZATION["images"]}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_container_is_locked_down_and_limited() -> None:
    for pod in pods():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"]["type"] == "RuntimeDefault" and context["fsGroup"]
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and own["capabilities"]["drop"] == ["ALL"]
            assert own["allowPrivilegeEscalation"] is False
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), container["name"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {v["name"] for v in pod["volumes"]} | {"data"}
        for volume in pod["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], volume


def test_probes_budget_and_scaling() -> None:
    (deployment,), (budget,), (scaler,) = (
        kind("Deployment"),
        kind("PodDisruptionBudget"),
        kind("HorizontalPodAutoscaler"),
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert container["lifecycle"]["preStop"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items() and budget["spec"]["minAvailable"] == 1
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "vidlex_queued_videos"
    assert "vidlex_queued_videos" in (ROOT / "service/runtime/gauges.py").read_text()
    assert scaler["spec"]["minReplicas"] == deployment["spec"]["replicas"] == 2
    services = {found["metadata"]["name"]: found["spec"]["selector"] for found in kind("Service")}
    assert services["vidlex"].items() <= labels.items()


def test_new_pods_refuse_a_store_with_another_schema() -> None:
    (deployment,) = kind("Deployment")
    schema = deployment["spec"]["template"]["spec"]["initContainers"][0]
    pattern = re.search(r"grep -Eq '([^']+)'", schema["command"][2])
    assert "--dry-run --json" in schema["command"][2] and pattern is not None
    for answer, is_current in (('{"pending": {}, "schema": 3}', True), ('{"pending":{"m004_x":{}},"schema":3}', False)):
        done = subprocess.run(["grep", "-Eq", pattern[1]], input=answer, text=True, check=False)
        assert (done.returncode == 0) == is_current


def test_variables_exist_and_the_stores_files_are_those_of_compose() -> None:
    for pod in pods():
        for container in containers(pod):
            assert unknown_variables({each["name"]: "" for each in container.get("env", [])}) == []
    (files,) = kind("ConfigMap")
    for name, text in files["data"].items():
        assert text == (ROOT / "docker" / name).read_text(), f"copy docker/{name} into store.yaml"

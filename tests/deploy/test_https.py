"""HTTPS of the proxy with certificates of its own CA, as docker-compose.https.yml sets it up."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from support.processes import free_port, until
from support.topology import ROOT, SERVICES, as_here, end, resolved

OVERRIDE = yaml.safe_load((ROOT / "docker-compose.https.yml").read_text())["services"]["proxy"]


@contextmanager
def proxy(folder: Path, http: int, https: int) -> Iterator[None]:
    given = {name: resolved(value, PROXY_SITE="localhost", PROXY_ISSUER="internal") for name, value in
             OVERRIDE["environment"].items()}  # fmt: skip
    environment = dict(os.environ) | given | {
        "PROXY_HTTP_PORT": str(http), "PROXY_HTTPS_PORT": str(https), "PROXY_UPSTREAMS": "127.0.0.1:1",
        "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder),
    }  # fmt: skip
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            as_here(SERVICES["proxy"]["command"]), env=environment, stdout=log, stderr=log, cwd=ROOT
        )
    try:
        yield
    finally:
        end(process)


def test_a_local_ca_signs_plain_http_is_redirected_and_certificates_are_kept(tmp_path: Path) -> None:
    http, https = free_port(), free_port()
    root = tmp_path / "caddy/pki/authorities/local/root.crt"
    kept = set()
    for _ in range(2):
        with proxy(tmp_path, http, https):
            until(lambda: root.exists() and answers(root, https))
            with httpx.Client(verify=trusting(root), trust_env=False) as client:
                assert client.get(f"https://localhost:{https}/metrics").status_code == 404
                gone = client.get(f"https://localhost:{https}/livez", timeout=30)
                assert gone.status_code in (502, 503) and gone.json()["code"] == "proxy_error"
                assert (
                    "max-age" in client.get(f"https://localhost:{https}/metrics").headers["strict-transport-security"]
                )
                plain = client.get(f"http://localhost:{http}/labels")
                # The redirect names the port that clients know, not the one inside the container.
                assert plain.status_code == 308 and plain.headers["location"] == "https://localhost/labels"
        kept.add(root.read_bytes())
    assert len(kept) == 1, "made once"


def trusting(root: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(root))


def answers(root: Path, port: int) -> bool:
    try:
        with httpx.Client(verify=trusting(root), trust_env=False) as client:
            return client.get(f"https://localhost:{port}/metrics").status_code == 404
    except (httpx.HTTPError, ssl.SSLError):
        return False


def test_certificates_lie_on_a_volume_and_both_ports_are_published() -> None:
    assert "proxy:/data" in SERVICES["proxy"]["volumes"]
    assert not any(entry.startswith("/data") for entry in SERVICES["proxy"]["tmpfs"])
    assert [resolved(port) for port in OVERRIDE["ports"]] == ["80:8080", "443:8443"]

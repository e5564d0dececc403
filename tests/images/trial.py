"""docker-compose.yml on an engine: started, used, hurt, upgraded, restored. A failed step raises EngineError."""

from __future__ import annotations

import json
import shutil
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from images.build import copy_tree
from images.engine import Engine, EngineError
from images.load import Load
from images.results import Results

URL = "http://127.0.0.1:8080"
LABELS = ("beach", "basketball", "road", "firework sparkler")
SAMPLE = "model/zoo/emoji-small/samples/seen-test-00-0000.mp4"
READY_SECONDS = 600
DIGEST = """
import hashlib, os, redis
password = open(os.environ["VIDLEX_REDIS_PASSWORD_FILE"]).read().strip()
client = redis.Redis.from_url(os.environ["VIDLEX_REDIS_URL"], password=password)
digest, number = hashlib.sha256(), 0
for key in sorted(client.scan_iter(match="vidlex:{*}:vectors:*")):
    for field, value in sorted(client.hgetall(key).items()):
        digest.update(key + field + value)
        number += 1
print(number, digest.hexdigest())
"""
REPLICAS = ("service-a", "service-b")


class Trial:
    def __init__(self, engine: Engine, folder: Path, results: Results) -> None:
        self.engine, self.results = engine, results
        self.tree = folder / "tree"
        self.files = ["docker-compose.yml"]
        self._threads = ThreadPoolExecutor(1, initializer=engine.enter_network)

    def run(self) -> None:
        copy_tree(self.tree)
        self.variables(SERVICE_IMAGE="vidlex:current")
        self.engine.run("tag", "vidlex:first", "vidlex:current")
        self.script("make-secrets.sh")
        try:
            for step in (self.start, self.limits, self.use, self.jobs, self.monitoring, self.lose_a_replica,
                         self.upgrade, self.restore, self.missing_model, self.https_and_own_model):  # fmt: skip
                began = time.monotonic()
                step()
                self.results.seconds[step.__name__.replace("_", " ")] = time.monotonic() - began
        except EngineError:
            print(self.compose("logs", "--tail", "15", check=False)[-6000:], flush=True)
            print(self.compose("ps", "-a", check=False), flush=True)
            raise
        finally:
            self.compose("down", "-v", check=False)

    # --- steps

    def start(self) -> None:
        self.results.step("compose up", f"ready after {self.up():.0f} s")
        states = self.compose("ps", "-a", "--format", "{{.Service}} {{.State}} {{.ExitCode}}").splitlines()
        wrong = [state for state in states if not (state.endswith("running 0") or state.endswith("exited 0"))]
        expect(not wrong and len(states) == 9, f"containers: {states}")
        choices = self.compose("exec", "-T", "service-a", "ls", "/cache")
        expect(choices.endswith(".json"), f"no choice of an encoder was kept in /cache: {choices!r}")

    def limits(self) -> None:
        found = {}
        for name in self.compose("ps", "-a", "-q").split():
            facts = json.loads(self.engine.run("inspect", name))[0]
            host, service = facts["HostConfig"], facts["Config"]["Labels"]["com.docker.compose.service"]
            found[service] = (host["Memory"], host["NanoCpus"], host["PidsLimit"], host["LogConfig"]["Config"])
            expect(all(found[service]), f"limits of {service}: {found[service]}")
            expect(host["CapDrop"] == ["ALL"] and host["ReadonlyRootfs"], f"{service} is not locked down")
        code = "from vidlex.service.machine.cpus import cpu_quota, num_cpus; print(cpu_quota(), num_cpus())"
        seen = self.compose("exec", "-T", "service-a", "/opt/vidlex/bin/python", "-c", code)
        expect(seen.split() == ["2.0", "2"], f"quota and CPUs as the service sees them: {seen}")
        self.results.step("limits of memory, CPUs, processes and logs", f"on {len(found)} containers; service: 2 CPUs")

    def use(self) -> None:
        body = {"labels": [{"name": name} for name in LABELS]}
        made = self.http(lambda http: http.post("/labels", json=body).raise_for_status().json())
        expect([entry["status"] for entry in made["data"]] == [201] * len(LABELS), f"labels: {made}")
        video = (self.tree / SAMPLE).read_bytes()
        answer = self.http(lambda http: http.post("/classify", files={"file": video}).raise_for_status().json())
        best = max(answer["labels"], key=lambda label: label["score"])
        self.results.step("labels and a video through the proxy", f"{len(LABELS)} labels; best: {best['name']}")
        memory = self.engine.run("stats", "--no-stream", "--format", "{{.MemUsage}}", self.container("service-a"))
        self.results.step("memory of a replica after that", memory)
        checks = self.http(lambda http: http.get("/readyz").json()["checks"])
        self.results.step(
            "checks of /readyz", "; ".join(f"{n}: {c['detail']}" for n, c in checks.items() if c["detail"])
        )
        denied = self.http(lambda http: http.get("/labels", headers={"Authorization": ""}).status_code)
        expect(denied == 401, f"without a key: {denied}")

    def jobs(self) -> None:
        """By the replicas and by a worker, on the volume that they share; what one keeps, all find."""
        self.compose("--profile", "worker", "up", "-d", "--no-build", "worker")
        video = (self.tree / SAMPLE).read_bytes()
        form = {"params": json.dumps({"params": {"keep": True}})}

        def submit(http: httpx.Client) -> str:
            return str(http.post("/jobs", files={"file": video}, data=form).raise_for_status().json()["id"])

        def finished(http: httpx.Client, job: str) -> Any:
            return http.get(f"/jobs/{job}", headers={"Prefer": "wait=60"}).raise_for_status().json()

        def attempts() -> int:
            return self.compose("logs", "worker", check=False).count('"job_attempt"')

        self.until(lambda: self.compose("logs", "worker", check=False).count("ready") > 0, "the worker", READY_SECONDS)
        number = 0
        while number < 40 and not (number >= 8 and attempts()):
            job = self.http(submit)
            done = self.http(lambda http: finished(http, job))  # noqa: B023
            expect(done["state"] == "succeeded", f"job: {done}")
            number += 1
        kept = self.http(lambda http: [http.get("/videos").raise_for_status().json()["data"] for _ in range(8)])
        expect(all(len(videos) == 1 for videos in kept), f"kept videos: {kept}")
        found = self.http(lambda http: http.post("/videos:search", json={"text": "road"}).raise_for_status().json())
        expect(len(found["data"]) == 1, f"search: {found}")
        expect(attempts() > 0, f"{number} jobs, none by the worker")
        seen = f"{number} jobs succeeded, {attempts()} of them by the worker; the video is found by a search"
        self.compose("--profile", "worker", "rm", "-sf", "worker")
        self.results.step("jobs and a kept video", seen)

    def monitoring(self) -> None:
        def targets() -> list[str]:
            text = self.compose("exec", "-T", "prometheus", "wget" if self.has_wget() else "curl", *self.quiet(),
                                "http://127.0.0.1:9090/api/v1/targets?state=active")  # fmt: skip
            return [t["health"] for t in json.loads(text)["data"]["activeTargets"] if t["labels"]["job"] == "vidlex"]

        self.until(lambda: targets() == ["up", "up"], "both replicas are found by name and scraped", 90)
        text = self.compose("exec", "-T", "prometheus", "wget" if self.has_wget() else "curl", *self.quiet(),
                            "http://127.0.0.1:9090/api/v1/alertmanagers")  # fmt: skip
        active = json.loads(text)["data"]["activeAlertmanagers"]
        expect(len(active) == 1, f"Alertmanagers: {active}")
        self.results.step("Prometheus", "2 replicas and 1 Alertmanager found by name")

    def lose_a_replica(self) -> None:
        """Killed from inside, as by the kernel when memory ends."""
        with self.load() as load:
            time.sleep(3)
            before = len(load.failures)
            self.compose("exec", "-T", "service-a", "sh", "-c", "kill -9 -1", check=False)
            time.sleep(3)
            self.until(lambda: self.health("service-a") == "healthy", "the killed replica is back", READY_SECONDS)
        failed = load.failures[before:]
        restarts = self.engine.run("inspect", self.container("service-a"), "--format", "{{.RestartCount}}")
        expect(restarts == "1", f"restarts: {restarts}")
        expect(before == 0 and len(failed) <= 4, f"requests at the killed replica may fail, one per client: {failed}")
        seen = f"{sum(load.answers.values())} requests of 4 clients, {len(failed)} failed; back by itself"
        self.results.step("a replica killed under load", seen)

    def upgrade(self) -> None:
        before = {name: self.container(name) for name in REPLICAS}
        self.engine.run("tag", "vidlex:second", "vidlex:current")
        began = time.monotonic()
        with self.load() as load:
            output = self.script("upgrade.sh")
        seconds = time.monotonic() - began
        after = {name: self.container(name) for name in REPLICAS}
        expect(not load.failures, f"{len(load.failures)} requests failed: {load.failures[:5]}\n{output}")
        expect(all(before[name] != after[name] for name in REPLICAS), f"not replaced: {output}")
        expect(load.answers["classify"] > 0 and load.answers["write"] > 0, f"no load: {load.answers}")
        seen = f"{seconds:.0f} s, {sum(load.answers.values())} requests, none failed"
        self.results.step("upgrade one by one under load", f"{seen}, the longest {load.longest_seconds:.1f} s")

    def restore(self) -> None:
        """A backup under load, restored into an empty volume."""
        self.http(lambda http: http.post("/keys", json={"scope": "read", "name": "another"}).raise_for_status())
        file = self.engine.path(self.tree.parent / "backup")
        command = " ".join(self.compose_words())
        with self.load() as load:
            self.engine.shell(f"docker {command} run --rm --no-deps -T migrate backup - >{file}")
        expect(not load.failures, f"requests failed during the backup: {load.failures[:5]}")
        self.engine.shell(f"docker {command} run --rm --no-deps -T migrate backup - >{file}")
        before = self.contents()
        self.compose("rm", "-s", "-f", "-v", "store", *REPLICAS)
        self.engine.run("volume", "rm", "vidlex_store")
        self.compose("up", "-d", "--no-build", "--wait", "store")
        self.engine.shell(f"docker {command} run --rm --no-deps -T migrate restore - <{file}")
        self.up()
        after = self.contents()
        for name, value in before.items():
            expect(value == after[name], f"{name} differ after the restore:\n{value}\n{after[name]}")
        size = (self.tree.parent / "backup").stat().st_size
        self.results.step(
            "backup under load, restored into an empty volume", f"{size / 1000:.0f} kB; equal labels, vectors and keys"
        )

    def contents(self) -> dict[str, str]:
        def ask(path: str) -> str:
            data = self.http(lambda http: http.get(path).raise_for_status().json()["data"])
            return json.dumps(
                [{k: v for k, v in entry.items() if k != "last_used_at_ms"} for entry in data], sort_keys=True
            )

        vectors = self.compose("exec", "-T", "service-b", "/opt/vidlex/bin/python", "-c", DIGEST)
        return {"labels": ask("/labels"), "keys": ask("/keys"), "vectors": vectors}

    def missing_model(self) -> None:
        words = ["run", "--rm", "--no-deps", "-T", "-e", "VIDLEX_MODEL=clip", "service-a", "weights", "fetch", "clip"]
        answer = self.compose(*words, check=False, both=True)
        expect(
            "HF_HUB_OFFLINE" in answer and "docker compose run --rm fetch" in answer, f"the message: {answer[-800:]}"
        )
        self.results.step("a model that is not there", "the message names the command that fetches it")

    def https_and_own_model(self) -> None:
        self.compose("down")
        own = self.tree / "docker/checkpoints/own"
        shutil.copytree(self.tree / "model/zoo/emoji-small", own)
        self.variables(SERVICE_IMAGE="vidlex:current", VIDLEX_MODEL="/checkpoints/own", PROXY_SITE="localhost",
                       PROXY_ISSUER="internal", PROXY_HTTP_PUBLISH="80", PROXY_HTTPS_PUBLISH="443")  # fmt: skip
        self.files.append("docker-compose.https.yml")
        self.up(wait=False)
        root = "/data/caddy/pki/authorities/local/root.crt"
        self.until(lambda: "BEGIN" in self.compose("exec", "-T", "proxy", "cat", root, check=False), "a local CA", 60)
        certificate = self.tree / "root.crt"

        def over_https() -> str:
            certificate.write_text(self.compose("exec", "-T", "proxy", "cat", root) + "\n")
            with httpx.Client(
                verify=ssl.create_default_context(cafile=str(certificate)),
                trust_env=False,
                headers=self.headers(),
                timeout=60,
            ) as http:
                self.until(lambda: answers(http, "https://localhost/readyz"), "HTTPS", READY_SECONDS)
                answer = http.get("https://localhost/readyz").raise_for_status()
                plain = http.get("http://localhost/livez")
                expect(plain.headers.get("location") == "https://localhost/livez", f"redirect: {plain.headers}")
                expect("strict-transport-security" in answer.headers, "no Strict-Transport-Security")
                return certificate.read_text()

        first = self.inside(over_https)
        self.compose("up", "-d", "--no-build", "--force-recreate", "--no-deps", "--wait", "proxy")
        expect(self.inside(over_https) == first, "the CA was made again: certificates are not kept")
        self.results.step("HTTPS with a local CA, own checkpoint", "answers; certificates outlive the container")

    # --- help

    def compose(self, *arguments: str, check: bool = True, both: bool = False) -> str:
        return self.engine.run(*self.compose_words(), *arguments, check=check, both=both)

    def compose_words(self) -> list[str]:
        files = [word for name in self.files for word in ("-f", self.engine.path(self.tree / name))]
        return ["compose", "--project-directory", self.engine.path(self.tree), *files]

    def script(self, name: str, *arguments: str) -> str:
        return self.engine.run_script(self.tree / "docker" / name, *arguments, folder=self.tree)

    def variables(self, **values: str) -> None:
        (self.tree / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def up(self, *, wait: bool = True) -> float:
        began = time.monotonic()
        self.compose("up", "-d", "--no-build", *(["--wait", "--wait-timeout", str(READY_SECONDS)] if wait else []))
        if wait:
            self.until(lambda: self.http(lambda http: http.get("/readyz").status_code) == 200, "ready", READY_SECONDS)
            for name in REPLICAS:
                self.until(lambda name=name: self.health(name) == "healthy", name, READY_SECONDS)  # type: ignore[misc]
        return time.monotonic() - began

    def health(self, name: str) -> str:
        return self.engine.run("inspect", self.container(name), "--format", "{{.State.Health.Status}}")

    def container(self, name: str) -> str:
        return self.compose("ps", "-a", "-q", name)

    def has_wget(self) -> bool:
        return "prom/prometheus:v3.5.0" not in self.results.stand_ins  # the published one has no curl

    def quiet(self) -> list[str]:
        return ["-qO-"] if self.has_wget() else ["-s"]

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.tree / 'docker/secrets/admin_key').read_text().strip()}"}

    def inside(self, action: Callable[[], Any]) -> Any:
        return self._threads.submit(action).result()

    def http(self, action: Callable[[httpx.Client], Any]) -> Any:
        def ask() -> Any:
            with httpx.Client(base_url=URL, headers=self.headers(), timeout=180, trust_env=False) as http:
                try:
                    return action(http)
                except httpx.TransportError as error:
                    return f"{type(error).__name__}: {error}"
                except httpx.HTTPStatusError as error:
                    raise EngineError(f"{error}: {error.response.text[:500]}") from error

        return self.inside(ask)

    def load(self) -> Load:
        label = self.http(lambda http: http.get("/labels").raise_for_status().json()["data"][0]["id"])
        key = (self.tree / "docker/secrets/admin_key").read_text().strip()
        return Load(URL, key, self.tree / SAMPLE, label, self.engine.enter_network)

    def until(self, is_done: Callable[[], bool], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not is_done():
            if time.monotonic() > end:
                raise EngineError(f"{what}: not within {seconds:.0f} s")
            time.sleep(1)


def answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == 200
    except httpx.TransportError:
        return False


def expect(is_right: bool, what: str) -> None:
    if not is_right:
        raise EngineError(what)

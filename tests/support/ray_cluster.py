"""A Ray cluster on this machine: several raylets, as many nodes for Ray."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A node whose raylet was killed is found dead after 1.5 s, not 15.
_SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
_STORE_BYTES = 100 * 2**20


class RayCluster:
    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, **resources: Any) -> Any:
        return self._cluster.add_node(object_store_memory=_STORE_BYTES, **resources)

    def kill_node(self, node: Any) -> None:
        """As if its machine had lost power: nothing is said to the cluster."""
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)

    def remove_node(self, node: Any) -> None:
        self._cluster.remove_node(node)


@contextmanager
def ray_cluster(**head: Any) -> Iterator[RayCluster]:
    """With a connected head; it and all nodes are gone afterwards."""
    # Paths of sockets have at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    Path(folder, "ray").mkdir()
    variables = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        import ray
        from ray.cluster_utils import Cluster

        arguments = {"object_store_memory": _STORE_BYTES, "include_dashboard": False, "_system_config": _SYSTEM, **head}
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level="warning")
            yield RayCluster(cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for _ in range(20):  # killed processes still write logs for a moment
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.1)

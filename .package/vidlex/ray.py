"""Tagging on Ray: `tag` maps a dataset of URIs to a dataset of results. See ``service/cluster/README.md``."""

from __future__ import annotations

from vidlex.service.bulk.options import TagOptions
from vidlex.service.cluster.meter import StageMetrics, StageSummary
from vidlex.service.cluster.parts import write_parts
from vidlex.service.cluster.tagging import ClusterLayout, tag

__all__ = ["ClusterLayout", "StageMetrics", "StageSummary", "TagOptions", "tag", "write_parts"]

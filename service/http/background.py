"""Parts that work behind the requests: jobs, webhooks, kept videos, feedback."""

from __future__ import annotations

from dataclasses import dataclass

from vidlex.service.feedback.feedback import Feedback
from vidlex.service.jobs.event_reader import EventReader
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.records import JobDefaults
from vidlex.service.jobs.runner import JobRunner
from vidlex.service.jobs.sources import JobSources
from vidlex.service.jobs.store import JobStore
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Outbound
from vidlex.service.retagging.matches import MatchStore
from vidlex.service.retagging.search import VideoSearch
from vidlex.service.videos.store import KeptVideoStore
from vidlex.service.webhooks.store import WebhookStore


@dataclass(frozen=True, kw_only=True)
class Background:
    """Each is None only in tests of other parts."""

    webhooks: WebhookStore
    webhook_policy: UrlPolicy
    fetching: Outbound  # of jobs' inputs
    kept_videos: KeptVideoStore
    label_matches: MatchStore
    video_search: VideoSearch
    jobs: JobStore
    job_files: JobFiles
    job_sources: JobSources
    job_limits: JobDefaults
    job_events: EventReader
    job_runner: JobRunner
    feedback: Feedback

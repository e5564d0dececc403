"""Settings of jobs, of URLs that the service opens, of kept videos and of feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode


class BackgroundSettings(BaseSettings):
    # jobs
    job_workers: int | None = Field(
        None, ge=0, le=256, description="jobs at a time in this process; 0: none; default: as decode_workers"
    )
    jobs_dir: Path | None = Field(
        None, description="folder of jobs' uploads and files, shared by their workers; default: jobs in data_dir"
    )
    max_queued_jobs: int = Field(100_000, ge=1, description="queued jobs, half per client; further ones get 429")
    max_job_bytes: int = Field(32 * 2**30, ge=1, description="of uploads and files of jobs, half per client")
    max_job_record_bytes: int = Field(
        2**30, ge=1, description="of records and results of a namespace's jobs in the store, until they are removed"
    )
    job_attempts: int = Field(3, ge=1, le=100, description="until a job without a result becomes a dead letter")
    job_lease_seconds: float = Field(15.0, ge=1, description="after which the job of a dead worker is queued again")
    job_timeout_seconds: float = Field(3600.0, gt=0, description="timeout of one attempt at a job")
    job_queue_seconds: float = Field(86_400.0, gt=0, description="after which a job that no worker has taken expires")
    job_result_seconds: float = Field(7 * 86_400.0, gt=0, description="how long a finished job and its result are kept")

    # URLs that clients name
    fetch_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="hosts whose https URLs jobs may read, as a JSON list; *.example.com: names below it; *: any "
        "public host; empty: none",
    )
    fetch_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="buckets that jobs may read as s3://BUCKET/KEY, as a JSON list; empty: none"
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hosts that webhooks may be sent to, as fetch_hosts"
    )
    private_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="networks, private ones too, that such URLs may lead to, over http too, as a JSON list"
    )
    max_fetch_bytes: int = Field(512 * 2**20, ge=1, description="of one file that a job reads from a URL")
    fetch_timeout_seconds: float = Field(600.0, gt=0, description="timeout of reading one URL")
    webhook_timeout_seconds: float = Field(15.0, gt=0, le=60, description="timeout of one delivery")

    # kept videos
    videos_dir: Path | None = Field(
        None, description="folder of kept features, shared by all replicas; default: videos in data_dir"
    )
    max_kept_bytes: int = Field(64 * 2**30, ge=0, description="of the kept videos of a namespace; 0: none are kept")
    kept_video_seconds: float = Field(0.0, ge=0, description="after which kept videos are removed; 0: never")

    search_bytes: int = Field(
        2 * 2**30, ge=0, description="memory for the codes with which many kept videos are searched; 0: none"
    )

    # feedback
    feedback_min: int = Field(30, ge=4, description="judgements of a label from which its threshold is fitted")
    feedback_apply: Literal["confirm", "auto"] = Field(
        "confirm", description="auto: a fitted threshold is applied without confirmation"
    )

"""Requests, and the scheduler that serves them together."""

from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    ImageJob,
    Preview,
    Progress,
    Started,
    TextJob,
    Token,
)
from flashjanus.scheduling.scheduler import Scheduler

__all__ = [
    "Cancelled",
    "Event",
    "Failed",
    "Finished",
    "Handle",
    "ImageJob",
    "Limits",
    "Preview",
    "Progress",
    "Scheduler",
    "Started",
    "TextJob",
    "Token",
]

"""Requests in, outcomes out: limits, retries, budgets, group commit. Knows nothing of prompts."""

from engine.scheduler.batch import BatchLane, BatchStream, ChatLane
from engine.scheduler.budget import Budget
from engine.scheduler.clock import SystemClock
from engine.scheduler.codec import decode_answer, decode_embedding, encode_answer, encode_embedding
from engine.scheduler.lane import Lane
from engine.scheduler.limits import Limits, RateLimiter
from engine.scheduler.retry import RetryPolicy
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.stream import Stream
from engine.scheduler.totals import Totals

__all__ = [
    "BatchLane",
    "BatchStream",
    "Budget",
    "ChatLane",
    "Lane",
    "Limits",
    "RateLimiter",
    "RetryPolicy",
    "Scheduler",
    "Stream",
    "SystemClock",
    "Totals",
    "decode_answer",
    "decode_embedding",
    "encode_answer",
    "encode_embedding",
]

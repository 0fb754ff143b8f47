"""Sentient agents: simulated users who feel, judge and answer."""

from rlver.agents.base import Opening, SentientAgent, UserType
from rlver.agents.embedded import EmbeddedAgent

__all__ = ["EmbeddedAgent", "Opening", "SentientAgent", "UserType"]

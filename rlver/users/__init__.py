"""Sentient agents: simulated users who feel, judge and answer."""

from rlver.users.base import Opening, User, UserType
from rlver.users.embedded.user import EmbeddedUser

__all__ = ["EmbeddedUser", "Opening", "User", "UserType"]

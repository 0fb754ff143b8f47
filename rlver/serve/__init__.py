"""An OpenAI-compatible server of simulated users and trained policies."""

from rlver.serve.app import make_app

__all__ = ["make_app"]

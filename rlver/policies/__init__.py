"""Policies, which reply to the user: local and remote models, scripts, functions and people."""

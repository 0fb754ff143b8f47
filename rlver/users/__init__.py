"""Simulated users: they feel, judge every reply and answer."""

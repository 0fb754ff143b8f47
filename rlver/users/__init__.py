"""Simulated users, which judge every reply and answer it: embedded, models behind endpoints, and people."""

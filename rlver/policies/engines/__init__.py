"""Engines: what samples tokens for a policy, in this process or behind a server. `engines.base` says what one can do."""

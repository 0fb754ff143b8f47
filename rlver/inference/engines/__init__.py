"""What samples tokens for a policy, in this process or behind a server; `engines.base` says what an engine can do."""

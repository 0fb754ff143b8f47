"""Engines sample tokens for a policy, in this process or on a server. `engines.base` defines their interface."""

"""Fitting, checking and attacking the judge of the embedded user."""

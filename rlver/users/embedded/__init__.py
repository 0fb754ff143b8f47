"""The embedded user: a rule-based judge with calibrated weights, and written lines to speak with."""

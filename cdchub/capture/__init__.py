"""Capture: from a commit in the source to an entry in the log. Nothing downstream is imported."""

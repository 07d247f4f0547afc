"""The report: one static page, made from a run's folder and opened from disk."""

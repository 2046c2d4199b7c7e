"""Scores, significance and diagnoses: records in, tables out; no model, no torch."""

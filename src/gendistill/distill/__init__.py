"""Distillation: objectives, what trains, and the loop."""

"""What a run will cost, worked out before it starts."""

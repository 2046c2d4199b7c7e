"""Training data a teacher writes: what is asked of it and which of its replies are kept."""

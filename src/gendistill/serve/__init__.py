"""An OpenAI-compatible HTTP endpoint over continuous batching."""

"""What a model is worth and what it costs: `bench`, `profile`, `quality` and `evaluation`, and what they share."""

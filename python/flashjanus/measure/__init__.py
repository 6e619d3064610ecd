"""Measures models: speed (`bench`, `profile`), quality (`quality`, `evaluation`), and the parts that these share."""

"""The model objects that users hold."""

"""The official processor: what a model of the official code is given."""

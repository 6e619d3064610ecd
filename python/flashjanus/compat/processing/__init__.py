"""The official processor, which prepares the inputs of the official model class."""

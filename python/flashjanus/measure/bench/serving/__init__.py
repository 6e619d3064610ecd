"""Sends a load to any server with OpenAI's interface and measures how fast it answers. Nothing here needs torch."""

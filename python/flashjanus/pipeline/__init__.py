"""Requests: prompts, images and conversations in, images and answers out."""

"""A load on any server of OpenAI's interface, and how soon it answers. Nothing here needs torch."""

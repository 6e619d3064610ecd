"""JanusFlow's parts as plain torch modules with the official names. Gradients, hooks, and adapters work on these."""

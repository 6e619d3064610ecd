"""JanusFlow's parts as plain torch modules, with the official names: what gradients, hooks and adapters work on."""

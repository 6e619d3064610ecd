"""Turn text, prompts, conversations and images into tensors."""

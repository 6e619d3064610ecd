"""What comes in, made into tensors: text, prompts, conversations and images."""

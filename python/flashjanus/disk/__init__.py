"""Files from outside and of our own: one reader of text and JSON, one writer of what is there whole or not at all."""

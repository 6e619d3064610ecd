"""Plans bound to memory, and what fills their rows."""

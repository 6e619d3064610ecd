"""The static-graph runtime: ops, plans and executors. Knows nothing of JanusFlow."""

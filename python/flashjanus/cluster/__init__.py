"""Beyond one request and one machine: batches from files, and Ray Serve and Ray Data around the same engine."""

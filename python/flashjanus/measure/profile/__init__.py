"""Where a request's time goes: by program, op and node, against the roofline; as a table, JSON, a trace, a page."""

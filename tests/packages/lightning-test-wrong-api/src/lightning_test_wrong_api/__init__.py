"""A tracer for a newer plugin interface."""

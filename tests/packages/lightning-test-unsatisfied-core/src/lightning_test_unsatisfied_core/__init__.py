"""A tracer for a newer core, whose module must not even be imported."""

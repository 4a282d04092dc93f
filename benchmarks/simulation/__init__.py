"""How fast users are simulated, beside the alternatives."""

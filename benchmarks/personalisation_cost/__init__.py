"""What it costs to personalise, beside the alternatives."""

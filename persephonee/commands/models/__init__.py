"""What is done with a model besides training it: its card, and its way to others."""

"""A run's tables, and the arithmetic from them to the headline numbers."""

"""How good a start meta-learned exits give to new users."""

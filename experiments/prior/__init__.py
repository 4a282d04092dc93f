"""The user's own class frequencies: what they give to each exit and to the policy, and to whom they do harm."""

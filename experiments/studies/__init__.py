"""What the figures share: the studies, their models, their users and their measurements."""

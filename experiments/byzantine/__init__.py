"""What hostile clients cost the merged exits, under each strategy."""

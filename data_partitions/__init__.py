"""Who has which samples: sources of partitions by user, and the splits of users and of their samples."""

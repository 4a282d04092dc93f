"""Where users' samples come from: FEMNIST, LEAF's JSON, parquet, and any labelled image set."""

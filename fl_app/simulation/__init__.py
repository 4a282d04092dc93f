"""A whole federation on one machine or on a Ray cluster: `persephonee simulate`."""

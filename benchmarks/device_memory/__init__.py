"""What `persephonee device run` has resident through a round."""

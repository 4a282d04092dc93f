"""The app that `persephonee new` writes, for a CNN and data of one's own."""

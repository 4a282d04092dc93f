"""The global multi-exit model: pretraining on many users, and meta-learned exits (Sec. 3.1.2)."""

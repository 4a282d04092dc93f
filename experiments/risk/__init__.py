"""Whether a policy keeps its promise: the rules that choose it, side by side."""

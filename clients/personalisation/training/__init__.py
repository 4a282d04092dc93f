"""Exit training: the paper's schedule, the fast one, and both for many users at once (PersEPhonEE, Sec. 3.1.3)."""

"""Every setting of a run, each defined once, and their flat form as run-config keys."""

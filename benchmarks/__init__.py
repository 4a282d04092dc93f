"""Side-by-side measurements of speed and memory, each with a command of its own; never timed tests."""

"""Studies of the paper and around it, one file each. Runs on a researcher's machine."""

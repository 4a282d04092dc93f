"""docs/results.md, written from the tables of figures and runs."""

"""docs/performance.md, written from what the benchmarks measured."""

"""Latency and throughput of personal inference."""

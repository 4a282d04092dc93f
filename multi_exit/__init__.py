"""The multi-exit network: cut a CNN into stages, attach early exits, count their cost, save and load them.

Runs on both sides, server and device, and imports nothing else of this project.
"""

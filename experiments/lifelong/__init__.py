"""Devices that live through a shift of their data (Sec. 3.4)."""

"""Whether the headlines still hold: each in a reduced version, within a band, in minutes."""

"""The ClientApp: one message per round in, one report out."""

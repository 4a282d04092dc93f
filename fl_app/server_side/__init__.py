"""The ServerApp: who takes part, the rounds, the strategy and the aggregation of shared exits."""

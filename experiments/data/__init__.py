"""From the publishers' files to what the commands of docs/results.md take: one command for each data set."""

"""Comparing runs: their records, one table, a chart and a picture of them, and plans of what is to be run."""

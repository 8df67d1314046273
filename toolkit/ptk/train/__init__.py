"""Tailoring: training records, models that answer differently for different people, and what shows that they do."""

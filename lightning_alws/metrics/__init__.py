"""Measures of a trained model; they know nothing of Lightning."""

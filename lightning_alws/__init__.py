"""Amortised learning by wake-sleep (ALWS): latent-variable models trained without an approximate posterior."""

"""Proximal policy optimisation on current TRL and transformers."""

"""Sequence classification: the head, its losses and its metrics."""

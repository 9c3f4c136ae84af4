"""Checkpoints: their families, files and settings, and their two halves."""

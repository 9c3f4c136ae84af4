"""Stored features handed to other programs."""

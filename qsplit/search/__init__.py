"""Texts, pictures and conditions -> ranked images of the store."""

"""Folders, archives and object storage -> rows of the store."""

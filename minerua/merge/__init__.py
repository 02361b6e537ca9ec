"""Merging: recipes in mergekit's YAML, methods that turn several models into one, and the engine that streams them.

The way in is `minerua.merge.merging`. Nothing is imported here: the registry loads this room's hooks, and no more.
"""

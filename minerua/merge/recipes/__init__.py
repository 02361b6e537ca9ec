"""Recipes: from YAML to frozen values, every fault at once with its place."""

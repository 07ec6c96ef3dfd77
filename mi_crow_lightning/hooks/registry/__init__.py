"""Hooks on a model: the site that torch calls, the code around the call, and the rules for registration."""

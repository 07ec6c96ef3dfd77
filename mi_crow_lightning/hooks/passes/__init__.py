"""Passes through the model: the torch handles, where a pass begins and ends, and the facts about its tokens."""

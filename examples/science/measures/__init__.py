"""The effects: each module runs one, and returns what it saw as plain numbers."""

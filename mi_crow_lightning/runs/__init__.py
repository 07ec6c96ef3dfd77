"""The hooks of one run, whichever Trainer runs it: batches in; attached hooks, readings, states and their files out."""

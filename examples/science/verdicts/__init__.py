"""The verdicts: each module judges one effect by the thresholds, and draws it."""

"""Where the tokens of a pass lie: padding, the prompt's end, and the rows of a batch."""

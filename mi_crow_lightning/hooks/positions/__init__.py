"""The positions of the tokens of a pass: padding, the end of the prompt, and the rows of a batch."""

"""What a pass through the model is: torch handles, where it begins and ends, and what its call says of its tokens."""

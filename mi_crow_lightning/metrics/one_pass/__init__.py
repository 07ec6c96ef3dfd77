"""Everything about an activation in one look, in the form that suits its device, and the buffers it is added to."""

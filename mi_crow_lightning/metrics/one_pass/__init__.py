"""One look at an activation, in the form that suits its device, and the buffers that it is added to."""

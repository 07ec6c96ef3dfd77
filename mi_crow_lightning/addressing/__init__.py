"""Which layers a signature means: names, globs, indices and roles over the tree of modules. Knows no hook."""

"""Layout: which tensor lies where in which file, and the files beside the weights."""

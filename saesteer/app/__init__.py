"""A page on this machine on which one steers by hand."""

"""One text's way through a memory, as lines, as data and as a page."""

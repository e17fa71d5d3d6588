"""The verbs of the command line, one file per family; ``registry`` names them all."""

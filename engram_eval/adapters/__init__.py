"""Open any causal language model for analysis: see ``load.open_model`` and ``base.Adapter``."""

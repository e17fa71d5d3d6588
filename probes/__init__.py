"""Analyses of trained models, one file each; ``registry`` lists them.

Each also runs alone::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = logit_lens(adapter, sample).rows
"""

"""From records to packed sequences in memory-mapped files. Knows tokenizers, never models.

A record's way: `sources` reads and checks it, `chat` and `encoding` make token ids and a loss mask of it, `stream`
gives the shuffled documents of one source, `mixture` draws from all of them, `packing` fills rows, `dataset` keeps the
rows on disk, and `masks` checks them once more before a stage trains on them.
"""

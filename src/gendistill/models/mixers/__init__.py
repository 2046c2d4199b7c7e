"""What replaces softmax attention: one layer for all mixers that `gendistill.names.MIXERS` lists."""

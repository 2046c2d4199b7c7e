"""Which layers keep softmax attention: found by measuring the teacher, before anything is trained."""

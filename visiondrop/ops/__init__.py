"""Arithmetic on tensors that methods share: scores, selection, merging, clustering, and the record of what was kept."""

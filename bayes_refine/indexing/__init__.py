"""Indexing ambiguity: which of several equivalent ways each image is indexed in."""

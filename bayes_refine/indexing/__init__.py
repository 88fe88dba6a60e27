"""Indexing ambiguity: which way each image is indexed, by what others or a reference say."""

"""Labelling runs: from unlabelled photos to labels with evidence, and to a corpus that has grown."""

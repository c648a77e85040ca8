"""Abdominal organ and tumor segmentation in CT from mixed labels."""

"""Checkpoints of nnU-Net into ours, and ours into a folder that nnU-Net v2 predicts from."""

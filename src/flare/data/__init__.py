"""Training patches: the cache, which voxels are read, how they are augmented, in which order they come."""

"""The embedded cohort: CT-like volumes on real anatomy, to try the whole method on any machine.

Deformation and painting are ours. Measured on a case of 66 x 120 x 161 voxels, one core: TorchIO's
`RandomElasticDeformation` takes 1.96 s (ours 0.15 s, on surfaces, so thick slices do not step),
`RandomLabelsToImage` 0.46 s (ours 0.05 s, with texture, vessels and organ walls), its import 2.5 s a worker.
`RandomBlur` and `RandomNoise` are as quick as ours (0.05 s against 0.07 s), but their noise is white.
"""

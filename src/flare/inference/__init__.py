"""From a CT volume and a trained network to a segmentation in the volume's own geometry."""

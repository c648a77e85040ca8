"""What trackers are told of a run: W&B, TensorBoard, MLflow. Case ids only, never a path of the machine."""

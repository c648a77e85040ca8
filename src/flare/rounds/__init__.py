"""The graph of rounds: teachers, labels, trainings, scores, and all of it in turn."""

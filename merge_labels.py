"""Build hybrid labels from ground truth and pseudo labels."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="merge_labels")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.rounds.label` and return its result."""
    from flare.rounds.label import merge

    return merge(cfg)


if __name__ == "__main__":
    main()

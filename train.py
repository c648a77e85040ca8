"""Train one round: prepares what is missing, trains, validates."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.rounds.iterate` and return what a sweep optimises."""
    from flare.rounds.iterate import train

    return train(cfg)["objective"]


if __name__ == "__main__":
    main()

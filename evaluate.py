"""Score predictions against references."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.evaluation.scores` and return its result."""
    from flare.evaluation.scores import evaluate

    return evaluate(cfg)


if __name__ == "__main__":
    main()

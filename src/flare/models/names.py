"""Names in the configuration of networks and losses, read without importing torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

PARTIAL_LOSSES = ("none", "marginal", "exclusion", "masked")  # of `loss.partial`


def named_targets(config: Any) -> Iterator[Any]:
    """Yield every `_target_` of a configuration: the network's own and those within its arguments."""
    if isinstance(config, Mapping) and "_target_" in config:
        yield config["_target_"]
    if isinstance(config, Mapping | list | tuple):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from named_targets(value)


def chosen_networks(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """List what a checkpoint may build beside ours and MONAI's: names in `allow` and in `model.net`."""
    net = (cfg.get("model") or {}).get("net")
    plain = OmegaConf.to_container(net) if OmegaConf.is_config(net) else net
    return tuple(sorted({str(name) for name in (*(cfg.get("allow") or ()), *named_targets(plain))}))


def describe_network(net: Mapping[str, Any]) -> str:
    """Name a network in few words: its class, and its features where the configuration lists them."""
    inner = net.get("network", net)
    features = inner.get("features") or inner.get("filters") or ()
    return " ".join([str(inner["_target_"]).rpartition(".")[2], *map(str, features)])


def activation_of(config: Mapping[str, Any]) -> str:
    """Say, by the configuration of a training, of what its outputs are logits: `softmax` or `sigmoid`."""
    return "sigmoid" if (config.get("loss") or {}).get("partial") == "masked" else "softmax"

"""Ray's EC2 provider, with a next best where EC2 refuses a launch: another type, or on demand instead of spot.

Ray 2.60 means to go on to the next node type after a failed launch, but on EC2 it does not: a refusal becomes
ALLOCATION_FAILED, which `CloudResourceMonitor` does not look at, and the same type is asked for again, for ever. So the
ways to start a group are tried here, within one launch, and a group is one node type with one maximum.

In the cluster's YAML: `provider: {type: external, module: ec2_provider.Provider, next_best: {<node type>: [<what is
different from its node_config>, ...]}}`, null taking a key away. The file lies on PYTHONPATH of the head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)


class Provider(AWSNodeProvider):
    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any] | None:
        """Starts up to `count` instances in the first way that EC2 accepts.

        Raises:
            NodeLaunchException: the last way's, where none is accepted.
        """
        others = self.provider_config.get("next_best", {}).get(tags["ray-user-node-type"], [])
        refusal: NodeLaunchException | None = None
        for config in ways(node_config, others):
            try:
                return super().create_node(config, tags, count)
            except NodeLaunchException as error:
                market = config.get("InstanceMarketOptions", {}).get("MarketType", "on demand")
                logger.warning("EC2 refuses %s, %s: %s", config["InstanceType"], market, error.category)
                refusal = error
        assert refusal is not None
        raise refusal


def ways(node_config: dict[str, Any], others: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The config itself, then with each of `others` laid over it."""
    yield node_config
    for other in others:
        yield {key: value for key, value in {**node_config, **other}.items() if value is not None}

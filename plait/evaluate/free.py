"""Documents that a model makes from nothing, opening and closing spans itself: are they such as it was trained on?

ended: they end by themselves, not by running out of room. known: their modalities follow each other as those of a task
or of a training document do. valid: both. has_NAME: the share that has an item of a modality.
"""

from collections.abc import Callable

from plait.config.run import RunConfig
from plait.config.tasks import AS_WRITTEN_TASK, mentions_of
from plait.data.shards import ShardSource
from plait.evaluate.judge import Found
from plait.evaluate.measures import share_of
from plait.generate.pipeline import Pipeline

LOOKED_AT = 2000
"""Training documents whose order of modalities is looked at, where they are trained on as written."""


def free_figures(
    pipeline: Pipeline, config: RunConfig, train: ShardSource, count: int, advance: Callable[[], None]
) -> Found:
    """Make ``count`` documents and measure them."""
    results = pipeline.complete([[]] * count, [None] * count, seed=config.seed + 1, on_result=lambda result: advance())
    made = [tuple(part.modality for part in result.parts) for result in results]
    orders = known_orders(config, train)
    ended = [result.stopped == "eos" for result in results]
    known = [order in orders for order in made]
    shares = {"ended": ended, "known": known, "valid": [a and b for a, b in zip(ended, known, strict=True)]}
    for name in dict.fromkeys(name for order in sorted(orders) for name in order):
        shares[f"has_{name}"] = [name in order for order in made]
    return Found({name: share_of(hits) for name, hits in shares.items()})


def known_orders(config: RunConfig, train: ShardSource) -> set[tuple[str, ...]]:
    """Return the orders of modalities of documents as training arranges them."""
    tasks = list(config.data.tasks)
    orders = {tuple(mentions_of(task)) for task in tasks if task != AS_WRITTEN_TASK}
    if not tasks or AS_WRITTEN_TASK in tasks:
        for i in range(min(len(train), LOOKED_AT)):
            orders.add(tuple(train.names[m] for m in train.parts([i]).modality))
    if config.data.drop_condition:  # what was given is left out of some documents
        orders |= {order[-1:] for order in orders}
    return orders

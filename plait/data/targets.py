"""Whether every modality of a run gets a target at all, said before training rather than after it.

A part that is kept whole, such as an image, and longer than a document may be stands in no batch. Where that is so of
all parts of a modality, or there are none, its tower would never be trained, without a word.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from plait.common.errors import DataError
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.config.tasks import AS_WRITTEN_TASK, mentions_of
from plait.data.loader import document_limit, open_task_sources
from plait.data.packing import EDGES, PartSize, cut_document
from plait.data.sources import AS_WRITTEN, TaskSource, folders

_AT_ONCE = 4096  # documents
_LOOKED_AT = 1000  # documents of which it is found what they need


def check_targets(config: RunConfig) -> list[str]:
    """Raise DataError where a modality with a loss gets no target from any document, in any of its tasks.

    That none of ``data.tasks`` predicts a modality is a choice: a sentence about it is returned instead. It ends as
    soon as every modality was found to have a target: data that are as they should be are read no further. ``config``
    has its vocabularies resolved.
    """
    missing = {name for name, record in config.modalities.items() if record.learns}
    sources = open_task_sources(config, "train")
    for source in sources:
        for start in range(0, len(source), _AT_ONCE):
            documents = np.arange(start, min(start + _AT_ONCE, len(source)))
            for i in _candidates(source, documents, missing, config):
                missing -= _targets_of(source, i, missing, config)
            if not missing:
                return []
    chosen = [name for name in missing if not _is_predicted(name, config)]
    if missing - set(chosen):  # the largest is likely to be what keeps the others out
        raise DataError(max(_why(name, sources, config) for name in missing - set(chosen))[1])
    return [f"{name}: none of data.tasks predicts it, so that it gets no target" for name in sorted(chosen)]


def _is_predicted(name: str, config: RunConfig) -> bool:
    """Say whether a task could give a modality a target."""
    learns_given = config.data.given_loss and _learns_given(name, config.model)
    for task in _all_tasks(config):
        mentions = mentions_of(task)
        if task == AS_WRITTEN_TASK or name == mentions[-1] or (learns_given and name in mentions):
            return True
    return False


def _all_tasks(config: RunConfig) -> set[str]:
    """Return the tasks that any of the data can have."""
    of_sources = [source.tasks or config.data.tasks or {AS_WRITTEN_TASK: 1.0} for source in folders(config).values()]
    return {task for tasks in of_sources for task, weight in tasks.items() if weight}


def skipped(counts: Mapping[str, int], config: RunConfig) -> list[str]:
    """Say at the end of a run what of its data stood in no batch because it was too long; ``counts`` are a loader's."""
    if not counts["parts_skipped"]:
        return []
    limit, policy = document_limit(config), config.data.too_long
    return [
        f"{counts['parts_skipped']:,} parts stood in no batch: their documents have more than {limit:,} tokens "
        f"(data.too_long: {policy}); data.batch_tokens, data.max_document_tokens and model.max_positions set this limit"
    ]


def too_long_item(name: str, tokens: int, config: RunConfig) -> str:
    """Say that items of ``tokens`` tokens of a modality do not fit in a document of this run; "" where they do."""
    limit = document_limit(config)
    is_host = name == config.model.layout.host
    needed = tokens + EDGES + (0 if is_host else 2)
    if needed <= limit or not config.modalities[name].learns:
        return ""
    return (
        f"{name}: an item has {tokens:,} tokens and needs documents of {needed:,}, but at most {limit:,} are allowed; "
        f"set {_settings(needed, config)} before training"
    )


def _candidates(source: TaskSource, documents: np.ndarray, missing: Iterable[str], config: RunConfig) -> list[int]:
    """Return the documents that have a part of a missing modality which can stand in a batch, as far as it is alone."""
    table, limit = source.source.parts(documents), document_limit(config)
    wanted = np.isin(table.modality, [source.source.names.index(m) for m in missing if m in source.source.names])
    whole = (table.grid > 0).sum(1) > 1
    fits = ~whole | (table.length + EDGES <= limit)
    return documents[table.sum(wanted & fits & (table.loss > 0)) > 0].tolist()


def _tasks_of(source: TaskSource, i: int) -> list[int]:
    """Return the tasks that can be drawn for a document."""
    bits = int(source.eligible(source.source.parts([i]))[0])
    eligible = [t for t in range(len(source.tasks)) if bits >> t & 1 and source.weights[t] > 0]
    return [*eligible, AS_WRITTEN] if source.weight_as_written > 0 or not eligible else eligible


def _parts_of(source: TaskSource, i: int, task: int) -> tuple[list[str], list[bool], list[PartSize]]:
    """Return the modalities of a document's parts in a task, whether each has a target, and their sizes."""
    table = source.source.parts([i])
    names, loss = [source.source.names[m] for m in table.modality], table.loss.tolist()
    chosen = source.choose(names, task, 0)
    learned = [
        loss[p] > 0 and (not is_given or (source.given_loss and _learns_given(names[p], source.model)))
        for p, is_given in chosen
    ]
    return [names[p] for p, _ in chosen], learned, source.sizes(i, task, 0)


def _learns_given(name: str, model: ModelConfig) -> bool:
    """Say whether a given part has a target: it stands there itself, and later tokens see it as it was learned."""
    record, reader = model.modalities[name], model.readers.get(name)
    stands = reader is None or model.modalities[reader].beside
    return stands and (record.objective == "next_token" or record.later_sees == "noised")


def _targets_of(source: TaskSource, i: int, missing: set[str], config: RunConfig) -> set[str]:
    """Return which of the missing modalities get a target from a document."""
    limit, with_target = document_limit(config), set()
    for task in _tasks_of(source, i):
        names, learned, sizes = _parts_of(source, i, task)
        everything = [(k, 0, size.length) for k, size in enumerate(sizes)]
        if TaskSource.piece_length(everything, sizes) <= limit:
            standing = set(range(len(sizes)))
        else:
            cut = cut_document(sizes, limit, config.data.too_long)
            standing = {k for piece in cut.pieces for k, _, _ in piece}
        with_target |= {names[k] for k in standing if learned[k]}
    return with_target & missing


def _why(name: str, sources: list[TaskSource], config: RunConfig) -> tuple[int, str]:
    """Return the tokens of a modality's longest part, and why it gets no target, with what to do."""
    where = ", ".join(repr(folder) for folder in folders(config))
    lengths, needed, num_documents = [], [], 0
    for source in sources:
        if name not in source.source.names:
            continue
        for start in range(0, len(source), _AT_ONCE):
            documents = np.arange(start, min(start + _AT_ONCE, len(source)))
            table = source.source.parts(documents)
            of_modality = table.modality == source.source.names.index(name)
            for i in documents[table.sum(of_modality) > 0].tolist():
                num_documents += 1
                if num_documents > _LOOKED_AT:
                    break
                for task in _tasks_of(source, i):
                    names, learned, sizes = _parts_of(source, i, task)
                    for k in [k for k, n in enumerate(names) if n == name and learned[k]]:
                        lengths.append(sizes[k].length)
                        needed.append(_needed(sizes, k, config.data.too_long))
            if num_documents > _LOOKED_AT:
                break
    stop = f"or give it model.modalities.{name}.loss_weight: 0 (and no final_loss_weight) if it must not learn"
    if not needed:
        said = f"data: no document of {where} has a part {name!r} to predict, so that it gets no target"
        return 0, f"{said}; add some, {stop}"
    low, high = min(lengths), max(lengths)
    tokens = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return high, (
        f"data: no part {name!r} fits in a batch, so that it gets no target: one has {tokens} tokens, a "
        f"document may have {document_limit(config):,} (too_long: {config.data.too_long}); set "
        f"{_settings(min(needed), config, max(needed))}, {stop}"
    )


def _needed(sizes: list[PartSize], k: int, policy: str) -> int:
    """Return how long a document must be allowed to be so that its part ``k`` stands in a batch."""
    if policy == "skip":
        return TaskSource.piece_length([(p, 0, size.length) for p, size in enumerate(sizes)], sizes)
    first = 0 if policy == "truncate" else k
    return EDGES + sum(size.length + size.delimiters for size in sizes[first : k + 1])


def _settings(needed: int, config: RunConfig, all_of_them: int = 0) -> str:
    """Name the settings that are below what is needed."""
    data = config.data
    below = ["data.batch_tokens"] if data.batch_tokens < needed else []
    below += ["model.max_positions"] if config.model.max_positions < needed else []
    below += ["data.max_document_tokens"] if 0 < data.max_document_tokens < needed else []
    more = f" ({all_of_them:,} for all of them)" if all_of_them > needed else ""
    return f"{' and '.join(below) or 'data.batch_tokens'} to at least {needed:,}{more}"

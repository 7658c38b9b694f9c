"""The account of `plait prepare`: what became of everything that the sources hold, file by file.

Every row is stored or broken. Every part of a stored row is stored, or left out because no modality of the config
reads its key. Every member of a tar is a part, meta, left out by a stated rule, or in a broken sample; every column of
a table is a part, meta or left out. `scan` counts what is there, the encoding what came of it, and both must agree.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from plait.common.errors import DataError, printable

_SHOWN_FILES = 8
_SHOWN_NAMES = 12


def count_given(given: Counter[str], row: Any, keys: Sequence[str]) -> None:
    """Count the parts of a row of a manifest by key; other keys than ``keys`` are one."""
    parts = row.get("parts") if isinstance(row, dict) else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            given.update(key if key in keys else "unknown keys" for key in part if key != "loss")


class ShardAccount:
    """What came of the rows of a shard, by number of their file."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, file: int, row: Any, mine: Sequence[str], *, broken: bool) -> None:
        """Count a row: a RawDocument, of whose parts the codecs read those of the keys ``mine``, or a broken one."""
        empty: dict[str, Any] = {"stored": 0, "broken": 0, "parts": Counter(), "left out": Counter()}
        counts = self.files.setdefault(str(file), empty | {"remarks": Counter()})
        counts["broken" if broken else "stored"] += 1
        if not broken:
            for key, _ in row.parts:
                counts["parts" if key in mine else "left out"][key] += 1
            counts["remarks"].update(row.remarks)


def account_of(files: Sequence[str], scans: Sequence[Mapping[str, Any]], notes: Sequence[Mapping]) -> list[dict]:
    """Return for each file what it holds and what became of it. Raises DataError where that does not add up."""
    entries = []
    for number, (file, scan) in enumerate(zip(files, scans, strict=True)):
        file_notes = [note["files"][str(number)] for note in notes if str(number) in note["files"]]
        stored, broken = (sum(note[k] for note in file_notes) for k in ("stored", "broken"))
        parts, left_out, remarks = (
            sum((Counter(note[k]) for note in file_notes), Counter()) for k in ("parts", "left out", "remarks")
        )
        rows = scan["train"] + scan["validation"]
        all_parts = Counter(scan["given"])
        if rows != stored + broken or (parts + left_out) - all_parts:
            raise DataError(
                f"prepare.source: {file!r} has {rows:,} rows, of which {stored:,} were stored and {broken:,} are "
                "broken: it changed while it was read; rerun with --restart to begin again"
            )
        by_key = {
            key: {"given": n, "stored": parts[key], "left out": left_out[key],
                  "in broken rows": n - parts[key] - left_out[key]}
            for key, n in sorted(all_parts.items())
        }  # fmt: skip
        counts = {
            "file": printable(file.rsplit("/", 1)[-1]),
            "rows": rows,
            "stored": stored,
            "broken": broken,
            "parts": by_key,
        }
        entries.append(counts | scan["account"] | {"remarks": dict(sorted(remarks.items()))})
    return entries


def account_lines(account: Sequence[Mapping[str, Any]], modalities: Mapping[str, str]) -> list[str]:
    """Return the account as lines; ``modalities`` are the config's with their keys."""
    lines = [_line(entry) for entry in account[:_SHOWN_FILES]]
    if len(account) > _SHOWN_FILES:
        rest = account[_SHOWN_FILES:]
        total = {k: sum(entry[k] for entry in rest) for k in ("rows", "stored", "broken")}
        lines.append(f"{len(rest):,} more files: {total['rows']:,} rows = {_sum(total)}; see report.json")
    for name, key in modalities.items():
        if account and not any(entry["parts"].get(key, {}).get("stored") for entry in account):
            lines.append(f"{name}: no part {key!r} is in any of the sources{_instead(account)}")
    return [printable(line) for line in lines]


def _line(entry: Mapping[str, Any]) -> str:
    said = [f"{entry['file']} ({entry['form']}): {entry['rows']:,} rows = {_sum(entry)}"]
    for key, counts in entry["parts"].items():
        more = [f"{counts[k]:,} {k}" for k in ("left out", "in broken rows") if counts[k]]
        why = " (no modality of the config reads them)" if counts["left out"] else ""
        said.append(f"{key}: {counts['stored']:,} stored" + "".join(f", {text}" for text in more) + why)
    members = entry.get("members")
    if members:
        left_out = members["left out"]
        total = sum(left_out.values()) + sum(n for n in members.values() if isinstance(n, int))
        some = [f"{n:,} {k}" for k, n in members.items() if k != "left out" and n]
        some += [f"{sum(left_out.values()):,} left out ({_listed(f'{k} {n:,}' for k, n in left_out.items())})"] * bool(
            left_out
        )
        said.append(f"{total:,} members = {' + '.join(some)}")
    columns = entry.get("columns")
    if columns:
        parts = _listed(name if name == key else f"{name} ({key})" for name, key in columns["parts"].items())
        said.append(f"columns: {parts} are parts")
        said += [
            f"{_listed(columns[k])} {'is' if k == 'meta' else 'are'} {k}" for k in ("meta", "left out") if columns[k]
        ]
    said += [f"{entry[k]:,} {k}" for k in ("empty cells", "blank lines") if entry.get(k)]
    said += [f"{n:,} {text}" for text, n in entry.get("remarks", {}).items()]
    return "; ".join(said)


def _sum(counts: Mapping[str, Any]) -> str:
    return f"{counts['stored']:,} stored + {counts['broken']:,} broken"


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {len(names) - _SHOWN_NAMES} more" * (len(names) > _SHOWN_NAMES))


def _instead(account: Sequence[Mapping[str, Any]]) -> str:
    """Name what could have been meant as a part: columns and suffixes that are none."""
    names: dict[str, None] = {}
    for entry in account:
        columns = entry.get("columns", {})
        names |= dict.fromkeys([*columns.get("meta", ()), *columns.get("left out", ())])
        names |= dict.fromkeys(k for k in entry.get("members", {}).get("left out", {}) if k.startswith("."))
    return f"; if one of {_listed(names)} is it, name all parts in prepare.columns" if names else ""


def report_of(
    rows: Mapping[str, int],
    notes: Mapping[tuple[str, int], dict],
    codecs: Mapping[str, Mapping],
    quality: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    account: list[dict],
    credit: str,
) -> dict:
    """Return what report.json holds; ``codecs`` are the index's records, ``notes`` those of the shards."""
    splits = {}
    for split, count in rows.items():
        split_notes = [note for (s, _), note in notes.items() if s == split]
        modalities = {
            name: {k: sum(note["modalities"][name][k] for note in split_notes) for k in ("parts", "tokens")}
            for name in codecs
        }
        documents = sum(note["shard"]["documents"] for note in split_notes if note["shard"])
        broken = sum(len(note["broken"]) for note in split_notes)
        splits[split] = {"rows": count, "documents": documents, "broken": broken, "modalities": modalities}
    figures = {
        "documents_train": splits["train"]["documents"],
        "documents_held_out": sum(s["documents"] for name, s in splits.items() if name != "train"),
        "broken_rows": sum(s["broken"] for s in splits.values()),
        "parts_left_out": sum(note["parts_left_out"] for note in notes.values()),
    }
    if account:
        figures["members_left_out"] = sum(sum(e["members"]["left out"].values()) for e in account if "members" in e)
        figures["columns_left_out"] = len({c for e in account for c in e.get("columns", {}).get("left out", ())})
    figures |= {f"tokens_{name}": splits["train"]["modalities"][name]["tokens"] for name in codecs}
    figures |= {f"{name}_codec_{k}": value for name, measured in quality.items() for k, value in measured.items()}
    return {
        "figures": figures,
        "rows": sum(rows.values()),
        "splits": splits,
        "sources": account,
        "codecs": {
            name: {k: record[k] for k in ("codec", "vocab_size", "latent_channels", "default_grid")}
            for name, record in codecs.items()
        },
        "quality": quality,
        "credit": credit,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }

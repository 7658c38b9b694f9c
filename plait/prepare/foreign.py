"""What users are likely to bring that is no manifest, and the line that makes one of it.

Files are known by their first bytes, folders by what is in them, rows by their keys.
"""

import csv
import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from plait.codecs.signatures import HEAD, kind_of
from plait.common.errors import DataError
from plait.prepare.raw import KEY_OF

_NAMES = {
    "image": ("image", "img", "images", "picture", "photo", "image_path", "image_file", "img_path", "filepath"),
    "audio": ("audio", "audio_filepath", "audio_path", "wav", "path_to_audio", "speech"),
    "text": ("text", "caption", "prompt", "instruction", "input", "question", "output", "answer", "response",
             "completion", "transcription", "transcript", "sentence", "description", "content", "title"),
}  # fmt: skip
"""What other tools call the columns of each key; those of one key in the order that they are read in."""
_FILES = ("file_name", "file", "filename", "path")  # an image's or a recording's: the value's suffix says which
_URLS = ("url", "URL", "image_url")
_LINES = 20  # of a text, by which a table is known
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}

_CHATS = ("a conversation as LLaVA has them", "a chat of messages")

_ARROW = "import pyarrow.{module} as r, pyarrow.parquet as p; p.write_table(r.{call}({old}), {new})"
_EACH = 'if type == "array" then .[] else . end | '


def refuse_file(head: bytes, place: str) -> None:
    """Raise DataError where a file begins as no manifest does; the sentence names its kind and the cure."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = kind_of(head[:HEAD]) if head else None
    looks_like_json = text[:1] in (b"{", b"[")
    if kind and not (looks_like_json and "text" not in kind.name):
        cure = _cure(kind.name, place) or kind.cure
        if kind.is_media:
            cure = (
                'a manifest names such files: {"parts": [{"text": "..."}, {"image": "a.png"}]} in a line of JSON each'
            )
        raise DataError(f"prepare.source: {place!r} is {kind.name}, no manifest" + (f"; {cure}" if cure else ""))
    if text and not looks_like_json:
        _refuse_text(text, place)


def _refuse_text(text: bytes, path: str) -> None:
    """Refuse a table or a plain text, unless one of its first lines could be JSON."""
    lines = [line for line in text[: 1 << 16].decode("utf-8", "replace").splitlines()[:_LINES] if line.strip()]
    if any(line.lstrip()[:1] in ("{", "[") or not line.isprintable() for line in _without_tabs(lines)):
        return
    whole = lines[:-1] if len(text) >= HEAD else lines  # the last one may be cut
    for sign, name in _SEPARATORS.items():
        counts = {len(fields) for fields in csv.reader(whole, delimiter=sign)}
        if len(whole) > 1 and len(counts) == 1 and counts != {1}:
            parse = "" if sign == "," else f", parse_options=r.ParseOptions(delimiter={sign!r})"
            line = _python("csv", "read_csv", path, parse)
            raise DataError(f"prepare.source: {path!r} is a table with {name}s (CSV), no manifest; convert it: {line}")
    if len(lines) > 1:
        line = f"jq -Rc 'select(. != \"\") | {{parts: [{{text: .}}]}}' {_old_new(path)}"
        raise DataError(
            f"prepare.source: {path!r} is plain text, no manifest; to make each line a document, convert it: {line}"
        )


def _without_tabs(lines: Sequence[str]) -> list[str]:
    return [line.replace("\t", "") for line in lines]


def _cure(kind: str, path: str) -> str:
    """Return how a file of a kind becomes a manifest, where that is known."""
    name, stem = shlex.quote(path), shlex.quote(os.path.splitext(path)[0])
    if "UTF-16" in kind or "UTF-32" in kind:
        return f"convert it: iconv -f {kind.split()[0]} -t UTF-8 {_old_new(path)}"
    commands = {
        "a gzip file": f"unpack it: gunzip -k {name}",
        "a bzip2 file": f"unpack it: bunzip2 -k {name}",
        "an xz file": f"unpack it: unxz -k {name}",
        "a zstd file": f"unpack it: unzstd {name}",
        "a zip archive": f"unpack it, then join what is in it: unzip {name} -d {stem} && tar cf {stem}.tar -C {stem} .",
        "an Arrow (Feather) file": f"convert it: {_python('feather', 'read_table', path)}",
        "a Feather file of version 1": f"convert it: {_python('feather', 'read_table', path)}",
        "an ORC file": f"convert it: {_python('orc', 'read_table', path)}",
        "an SQLite database": "write the table that holds the documents as Parquet or as lines of JSON",
        "nothing but zeros": "get the file itself again",
    }
    if kind.startswith("an Arrow stream"):
        return "write the data set as Parquet: datasets.load_from_disk(FOLDER).to_parquet('data.parquet')"
    return commands.get(kind, "")


def _old_new(path: str) -> str:
    return f"{shlex.quote(path)} > {shlex.quote(os.path.splitext(path)[0] + '.manifest.jsonl')}"


def _python(module: str, call: str, path: str, more: str = "") -> str:
    new = os.path.splitext(path)[0] + ".parquet"
    return "python -c " + shlex.quote(_ARROW.format(module=module, call=call, old=repr(path) + more, new=repr(new)))


def about_folder(folder: str) -> str:
    """Say what a folder that was given as a source holds, and how it becomes one."""
    try:
        names = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
    except OSError:
        return ""
    if os.path.isfile(os.path.join(folder, "meta", "info.json")):
        return f"; if it is a LeRobotDataset, name it as {f'lerobot:{folder}'!r}"
    by_suffix: dict[str, int] = {}
    for name in names:
        suffix = name.rsplit(".", 1)[-1].lower() if "." in name else ""
        by_suffix[suffix] = by_suffix.get(suffix, 0) + 1
    for name in ("metadata.jsonl", "manifest.jsonl", "metadata.parquet"):
        if name in names:
            return f"; it holds {name!r}, name that"
    for suffix in ("parquet", "tar", "jsonl", "json"):
        if suffix in by_suffix:
            return (
                f"; it holds {by_suffix[suffix]} files *.{suffix}, name them: {os.path.join(folder, '*.' + suffix)!r}"
            )
    return "; it holds no image, recording or text that plait knows by its suffix"


def is_media_folder(folder: str) -> bool:
    """Say whether a folder holds media or texts, in subfolders too, and nothing that is a source by itself."""
    tables = (".parquet", ".tar", ".jsonl")
    if not os.path.isdir(folder) or any(name.endswith(tables) for name in os.listdir(folder)):
        return False
    return any(name.rsplit(".", 1)[-1].lower() in KEY_OF for _, _, names in os.walk(folder) for name in names)


def about_row(row: dict[str, Any]) -> str:
    """Say whose form a row without parts has, and the line that converts its file; "" where it is not known."""
    form = _known_form(row) or _rows_within(row)
    if form is None:
        return ""
    whose, change = form
    if not change:
        return f'the row has no "parts", it is {whose}'
    if whose in _CHATS:
        whose += (
            ", which is read as it is where the text codec has a chat template (codec: text_pretrained with the "
            "tokenizer of a chat model, docs/chat.md)"
        )
    return (
        f'the row has no "parts", it is {whose}; a row must be {{"parts": [{{"text": "..."}}, {{"image": "a.png"}}]}}, '
        f"convert the file: jq -c '{_EACH}{change}' OLD > NEW.jsonl"
    )


def _known_form(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return whose form a row has, and the program of jq that converts one."""
    if isinstance(row.get("conversations"), list):
        images = '[(.image // .images // empty) | if type == "array" then .[] else . end | {image: .}]'
        texts = '[.conversations[] | .value | gsub("<image>\\\\s*"; "") | select(. != "") | {text: .}]'
        return (
            _CHATS[0],
            f"{{parts: ({images} + {texts}), meta: {_rest(row, 'conversations')}}}",
        )
    if isinstance(row.get("messages"), list):
        images = '[(.images // empty) | .[] | {image: (if type == "object" then .path else . end)}]'
        part = (
            'if type == "string" then {text: .} else .[] | if .text then {text} elif .image then {image} '
            'elif .image_url then {image: (.image_url | if type == "object" then .url else . end)} '
            "elif .audio then {audio} else empty end end"
        )
        texts = f'[.messages[] | .content | {part} | select(.text != "")]'
        return _CHATS[1], f"{{parts: ({images} + {texts}), meta: {_rest(row, 'messages')}}}"
    if isinstance(row.get("images"), list) and isinstance(row.get("annotations"), list):
        names = "(.images | map({key: (.id | tostring), value: .file_name}) | from_entries) as $files | "
        return "a file of COCO's", names + (
            ".annotations[] | {parts: [{image: $files[.image_id | tostring]}, {text: .caption}]}"
        )
    if row and all(isinstance(v, dict) and v.keys() & {"caption", "tags"} for v in row.values()):
        return "the metadata of kohya's scripts", (
            "to_entries[] | {parts: [{image: .key}, {text: (.value.caption // .value.tags)}]}"
        )
    return _columns_of(row)


def _rows_within(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return where the rows of a file of one mapping lie, such as {"data": [...]}."""
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        return None
    first, each = row[lists[0]][0], f".[{json.dumps(lists[0])}][]"
    inner = ("", ".") if "parts" in first else _known_form(first)
    if inner is None or not inner[1]:
        return None
    return f"a mapping with the rows under {lists[0]!r}", f"{each} | {inner[1]}"


def _columns_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return what a row of columns is, such as {"image": "a.png", "caption": "..."}."""
    kinds: dict[str, str] = {}
    for name, value in row.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or not isinstance(value, str):
            continue
        if name in _FILES and (key := KEY_OF.get(value.rsplit(".", 1)[-1].lower())) in ("image", "audio"):
            kinds[name] = str(key)
        elif key := next((key for key, names in _NAMES.items() if name.lower() in names), None):
            kinds[name] = key
    if "image" not in kinds.values() and (url := next((n for n in _URLS if _is_image_url(n, row)), None)):
        return f"a row with the address of an image ({url!r}), which img2dataset downloads to tars; name those", ""
    if not kinds:
        return None
    order = [name for name in kinds if kinds[name] != "text"] + [name for name in kinds if kinds[name] == "text"]
    parts = ", ".join(f"{{{kinds[name]}: .{name}}}" for name in order)
    keep = f'[{parts}] | map(select(all(.[]; . != "" and . != null)))'
    whose = "a row of an image folder (metadata.jsonl)" if "file_name" in kinds else "a row of columns"
    return f"{whose}: {', '.join(order)}", f"{{parts: ({keep}), meta: {_rest(row, *kinds)}}}"


def _is_image_url(name: str, row: dict[str, Any]) -> bool:
    """Say whether a field is the address of an image rather than of the page that a text is from."""
    value = row.get(name)
    if not isinstance(value, str):
        return False
    path = value.split("?", 1)[0]
    return name == "image_url" or "caption" in row or KEY_OF.get(path.rsplit(".", 1)[-1].lower()) == "image"


def _rest(row: dict[str, Any], *used: str) -> str:
    """Return the program of jq for what of a row becomes its meta."""
    used = (*used, *(name for name in ("image", "images") if name in row and name not in used))
    return f"del({', '.join('.' + name for name in used)})"

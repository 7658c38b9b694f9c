"""A trained model with its codecs: media in, media out."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from plait.batch.documents import Part, as_given
from plait.codecs import Codec, Encoded, Media, fixed_grids
from plait.codecs.base import alike, read_only
from plait.common.errors import ConfigError, require, unknown
from plait.common.files import atomic_file
from plait.config.generation import DiffusionConfig, GenerateConfig, SamplingConfig
from plait.config.model import ModelConfig
from plait.config.tasks import mentions_of
from plait.generate.engine import generate
from plait.generate.prompts import MediaPart, Prompt, read_chat, read_prompt
from plait.generate.request import Request, Result
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import usable


@dataclass
class Sample:
    """One generated sample as media: what was given, what was made, and how."""

    prompt: list[MediaPart]
    output: list[MediaPart]
    result: Result
    codecs: dict[str, Codec]

    @property
    def task(self) -> str:
        """What was given and asked for, such as ``text>image``, or ``text>scene3d+motion`` of what was made in turn;
        ``free`` where the model chose."""
        made = "+".join(m for m, _ in self.output) or self.result.request.output
        return ">".join([*(m for m, _ in self.prompt), made if self.result.request.output and made else "free"])

    @property
    def text(self) -> str:
        """The text that was made."""
        return "".join(media for name, media in self.output if self.codecs[name].kind == "text")

    @property
    def message(self) -> dict[str, Any]:
        """What was made as the assistant's message, to stand behind those that it answers (`Pipeline.chat`)."""
        content = []
        for name, media in self.output:
            kind = "text" if self.codecs[name].kind == "text" else self.codecs[name].key
            content.append({"type": kind, kind: media})
        return {"role": "assistant", "content": content or ""}

    def _repr_html_(self) -> str:
        """Show the sample in a notebook: what was given, and what was made."""
        return "".join(f"<div>{self._html(*part)}</div>" for part in (*self.prompt, *self.output))

    def _html(self, name: str, media: Media) -> str:
        return html.escape(read_only(media)) if isinstance(media, Encoded) else self.codecs[name].to_html(media)

    def save(
        self, folder: Path, name: str, truth: Sequence[MediaPart] = (), *, also: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write the media as files below ``folder`` and return the sample's record.

        What was made is written in the formats ``also`` too, such as ".ply", where its codec has them.
        """
        request = self.result.request
        record = {
            "id": name,
            "task": self.task,
            "prompt": [self._save_part(folder, f"{name}-prompt{i}", p) for i, p in enumerate(self.prompt)],
            "output": [self._save_part(folder, f"{name}-output{i}", p, also) for i, p in enumerate(self.output)],
            "stopped": self.result.stopped,
            "seed": request.seed,
            "number": request.number,
            "sampling": {
                m: asdict(s) for m, s in request.sampling.items() if m in {p.modality for p in self.result.parts}
            },
        }
        if truth:
            record["truth"] = [self._save_part(folder, f"{name}-truth{i}", p) for i, p in enumerate(truth)]
        return record

    def _save_part(self, folder: Path, name: str, part: MediaPart, also: Sequence[str] = ()) -> dict[str, Any]:
        parts = [(self.codecs[m].kind, item) for m, item in (*self.prompt, *self.output) if item is not part[1]]
        others = [(kind, item) for kind, item in parts if not isinstance(item, Encoded)]
        return save_media(self.codecs[part[0]], part, folder, name, also=also, others=others)


def save_media(
    codec: Codec, part: MediaPart, folder: Path, name: str, *, also: Sequence[str] = (),
    others: Sequence[tuple[str, Media]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write one item below ``folder`` (text stays in the record) and return its entry for a JSON record.

    ``also`` are suffixes of more files, of those that the codec has; ``others`` the other parts of the item's document,
    each its kind and the item.
    """
    modality, media = part
    if codec.kind == "text":
        return {"modality": modality, "text": media}
    if isinstance(media, Encoded):
        return {"modality": modality, "text": read_only(media)}
    made = [folder / modality / f"{name}{suffix}" for suffix in dict.fromkeys((codec.suffix, *also))
            if suffix in (codec.suffix, *codec.formats)]  # fmt: skip
    for path in made:
        with atomic_file(path) as temporary:
            renamed = temporary.with_suffix(path.suffix)  # writers look at the suffix
            codec.write_among(media, renamed, others)
            renamed.replace(temporary)
    first, *more = (str(path.relative_to(folder)) for path in made)
    return {"modality": modality, "file": first} | ({"also": more} if more else {})


def check_formats(codecs: Sequence[Codec], also: Sequence[str], where: str) -> None:
    """Raise a ConfigError that names ``where`` for a suffix that none of the codecs writes."""
    kinds = " and ".join(codec.kind for codec in codecs)
    files = [codec for codec in codecs if codec.kind != "text"]
    allowed = list(dict.fromkeys(name.lstrip(".") for codec in files for name in (codec.suffix, *codec.formats)))
    text = f"one of {', '.join(allowed)}, for {kinds}" if allowed else f"left out: {kinds} has no files"
    for suffix in also if codecs else ():
        require(suffix.lstrip(".") in allowed, where, suffix.lstrip("."), text)


def encode_media(media: Sequence[MediaPart], codecs: Mapping[str, Codec], config: ModelConfig) -> list[Part]:
    """Encode media in order; what is encoded already, as that of a codec that only reads is, stays as it is.

    An item that another modality reads too may be followed by what that one's codec read of it (`Pipeline.read`); else
    that codec takes the item itself.
    """
    parts: list[Part] = []
    for (modality, item), (following, _) in pairwise([*media, ("", None)]):
        part = _encoded(codecs[modality], modality, item)
        if parts and config.modalities[modality].reads == parts[-1].modality and parts[-1].features is None:
            parts[-1].features = part
            continue
        reader = config.readers.get(modality)
        if reader is not None and following != reader:
            taken = codecs[reader].taken_from(item, codecs[modality])
            part.features = _encoded(codecs[reader], reader, taken)
        parts.append(part)
    return as_given(parts)


def _encoded(codec: Codec, modality: str, item: Media) -> Part:
    encoded = item if isinstance(item, Encoded) else codec.encode([item])[0]
    return Part(modality, encoded.ids, encoded.latents, encoded.grid)


class Pipeline:
    """A model with its codecs. Modalities and their codecs are those of the prepared data it was trained on."""

    def __init__(self, model: MixtureOfTransformers, codecs: dict[str, Codec], config: GenerateConfig,
                 diffusion: DiffusionConfig | None = None, tasks: Mapping[str, float] | None = None):  # fmt: skip
        self.model, self.codecs, self.config, self.diffusion = model, codecs, config, diffusion
        self.tasks = dict(tasks or {})
        """Those that it was trained on (`data.tasks`), where they are known."""

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write the model with its codecs and settings of generation into a folder that `plait.load` takes."""
        from plait.generate.saved import save_pipeline

        save_pipeline(self, Path(folder), max_shard_size=max_shard_size)

    def push_to_hub(
        self, name: str, *, private: bool = False, revision: str = "", message: str = "",
        max_shard_size: int | str = "5GB",
    ) -> str:  # fmt: skip
        """Publish what `save_pretrained` writes, and a card, as ``owner/name`` on the Hugging Face Hub.

        Returns the commit's address. Raises ConfigError and ResourceError.
        """
        from plait.generate.saved import push_pipeline

        return push_pipeline(self, name, private=private, revision=revision, message=message,
                             max_shard_size=max_shard_size)  # fmt: skip

    @property
    def makes_edits(self) -> bool:
        """Whether it may make images from images: not where its tasks have none such."""
        images = [name for name, codec in self.codecs.items() if codec.kind == "image" and not codec.reads]
        tasks = [mentions_of(task) for task in self.tasks]
        return not tasks or any(sum(name in images for name in task) > 1 for task in tasks)

    @property
    def precision(self) -> str:
        """The precision that is computed in: `generate.precision`, where the device has instructions for it."""
        return usable(self.config.precision, self.model.device)

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        """Extent of one generated item, for modalities where it is fixed."""
        chosen = {name: tuple(grid) for name, grid in self.config.grids.items()}
        return fixed_grids(self.codecs) | chosen

    def encode(self, media: Sequence[MediaPart]) -> list[Part]:
        """Encode media in order (`encode_media`)."""
        return encode_media(media, self.codecs, self.model.config)

    def decode(self, parts: Sequence[Part]) -> list[MediaPart]:
        """Decode parts; those of a modality go through its codec together."""
        media: dict[int, Media] = {}
        for name, places in alike([p.modality for p in parts], len(parts)):
            encoded = [Encoded(parts[i].ids, parts[i].latents, parts[i].grid) for i in places]
            media |= dict(zip(places, self.codecs[name].decode(encoded), strict=True))
        return [(p.modality, media[i]) for i, p in enumerate(parts)]

    def read(self, prompt: Prompt, base: Path = Path()) -> list[MediaPart]:
        """Read a prompt (plait.generate.prompts says what one may be); paths in parts are relative to ``base``."""
        return read_prompt(prompt, self.codecs, self.model.config.layout.host, base)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] = "",
        output: str | Sequence[str] | None = None,
        *,
        seed: int = 0,
        sampling: dict[str, SamplingConfig] | None = None,
        max_tokens: dict[str, int] | None = None,
        grids: dict[str, tuple[int, ...]] | None = None,
    ) -> list[Sample]:
        """Generate one sample for each prompt: a list holds prompts, anything else is one prompt by itself.

        A prompt is a text, a `Path` (of an image, a recording or a text, whatever the file is), a PIL image, an array
        (image: uint8 [H, W, 3], [H, W, 4] or grey [H, W]; sound: float32 [samples] at the speech codec's
        ``sample_rate``), a part such as ``{"image": "fox.png"}``, or a list of such. ``output`` is the modality that
        shall follow, or several in turn, each made from all before it; None lets the model open and close spans itself.
        ``grids`` sets the extent of latents, in tokens.
        Raises ConfigError and DataError.
        """
        prompts = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
        media = [self.read(p) for p in prompts]
        return self.generate_from_media(
            media, [output] * len(media), seed=seed, sampling=sampling, max_tokens=max_tokens, grids=grids
        )

    def chat(self, messages: Any, output: str | None = "text", *, base: Path = Path(), **settings: Any) -> Sample:
        """Answer a conversation, which the model's own chat template writes.

        ``messages`` is a list such as ``[{"role": "user", "content": "What is the capital of France?"}]``, in OpenAI's
        form or LLaVA's (docs/chat.md); media in it are paths relative to ``base``, data: addresses, PIL images or
        arrays. ``output`` is the modality to answer in, by its name or its key; None lets the model open and close
        spans itself. ``settings`` are those of `complete`. The answer is the sample's `text`, and ends where the model
        ends its turn. Raises ConfigError and DataError.
        """
        names = {codec.key: name for name, codec in self.codecs.items() if not codec.reads}
        media = read_chat(messages, self.codecs, self.model.config.layout.host, base)
        chosen = output if output is None else names.get(output, output)
        return self.generate_from_media([media], [chosen], **settings)[0]

    def generate_from_media(
        self, media: Sequence[Sequence[MediaPart]], outputs: Sequence[str | Sequence[str] | None], **settings: Any
    ) -> list[Sample]:
        """Generate one sample for each list of media, with its output, or with several in turn; ``settings`` are those
        of `complete`."""
        prompts, wanted = [self.encode(m) for m in media], [_in_turn(output) for output in outputs]
        for name in (name for names in wanted for name in names[1:]):  # said before the first one is made
            if name not in self.codecs:
                raise ConfigError(unknown("generate", name, self.codecs))
        results = self.complete(prompts, [names[0] for names in wanted], **settings)
        for turn in range(1, max(map(len, wanted), default=0)):
            places = [i for i, names in enumerate(wanted) if turn < len(names) and len(results[i].parts) == turn]
            before = [[*prompts[i], *results[i].parts] for i in places]
            made = self.complete(before, [wanted[i][turn] for i in places], **settings | {"numbers": places})
            for i, result in zip(places, made, strict=True):
                results[i] = replace(result, parts=[*results[i].parts, *result.parts])
        decoded = iter(self.decode([part for r in results for part in r.parts]))
        modalities = self.model.config.modalities
        return [
            Sample([p for p in m if not modalities[p[0]].reads], list(islice(decoded, len(r.parts))), r, self.codecs)
            for m, r in zip(media, results, strict=True)
        ]

    def complete(
        self,
        prompts: Sequence[Sequence[Part]],
        outputs: Sequence[str | None],
        *,
        seed: int = 0,
        sampling: dict[str, SamplingConfig] | None = None,
        max_tokens: dict[str, int] | None = None,
        grids: dict[str, tuple[int, ...]] | None = None,
        num_snapshots: int = 0,
        numbers: Sequence[int] | None = None,
        on_result: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        """Generate what follows each encoded prompt: THE way to generate, with the run's own settings of generation.

        ``numbers`` tell apart the requests of one seed (`Request.number`); by default they count up.
        """
        sampling = self.config.sampling | _mapping("sampling", sampling)
        max_tokens = self.config.max_tokens | _mapping("max_tokens", max_tokens)
        grids = _mapping("grids", grids)
        requests = [
            Request(list(p), o, sampling, max_tokens, grids, seed=seed, number=i, num_snapshots=num_snapshots)
            for i, p, o in zip(numbers or range(len(prompts)), prompts, outputs, strict=True)
        ]
        return generate(self.model, requests, on_result=on_result, **self.engine_settings)

    @property
    def engine_settings(self) -> dict[str, Any]:
        """The run's own settings of a `Generator`."""
        config = self.config
        return {
            "grids": self.grids, "max_rows": config.batch_size, "max_length": self.model.config.max_positions,
            "diffusion": self.diffusion, "precision": self.precision,
            "page_size": config.page_size if config.cache == "paged" else 0, "cache_tokens": config.cache_tokens,
            "cuda_graphs": config.cuda_graphs, "speculate": config.speculate,
        }  # fmt: skip


def _in_turn(output: str | Sequence[str] | None) -> Sequence[str | None]:
    """Return what is to be made, in order."""
    return [output] if output is None or isinstance(output, str) else list(output) or [None]


def _mapping(name: str, value: dict[str, Any] | None) -> dict[str, Any]:
    require(value is None or isinstance(value, dict), f"generate.{name}", value, "a mapping by modality")
    return value or {}

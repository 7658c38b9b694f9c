"""A model's text on the tasks of EleutherAI's lm-evaluation-harness (package ``lm_eval``), a user's own among them.

Importing this module registers the model ``plait`` there; running it is the harness's own command with that model.
Texts are tokenized, joined and cut as lm_eval does for models of transformers (`lm_eval.models.huggingface.HFLM`), so
that a language model has the same scores as a tower. Scores are over the ids that may follow in a text: for a
pretrained text tower its tokenizer's alone, whatever other modalities stand beside it.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import plait
from plait.batch.assemble import Run, assemble
from plait.batch.documents import Part, role_of
from plait.codecs.base import Encoded, ids_of
from plait.common.errors import ConfigError, DataError, PlaitError, ResourceError, require, shown, unknown
from plait.config.generation import SamplingConfig
from plait.generate.allowed import AllowedIds
from plait.generate.decoding import rows_of
from plait.generate.engine import Generator
from plait.generate.pipeline import Pipeline
from plait.generate.request import Request
from plait.generate.rows import one
from plait.model.cache import to_device
from plait.model.precision import autocast

try:
    from jinja2 import TemplateError
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    package = str(error.name).partition(".")[0]
    raise ResourceError(f"package {package!r} is not installed, install it: pip install 'plait[harness]'") from None

AUTO_TOKENS = 4096  # of one forward pass, where the batch size is "auto"
SCORED_AT_ONCE = 512  # tokens of which the scores of all ids are held
SETTINGS = ("until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "do_sample",
            "temperature", "top_k", "top_p")  # fmt: skip  # what a task may say of generation
Fed = tuple[tuple[int, ...], int]
"""Ids that the model is fed, and how many of the last ones are followed by an id that is scored."""


@register_model("plait")
class PlaitLM(TemplateLM):
    """A model with its text codec, as lm_eval asks it.

    ``pretrained`` is what `plait.load` takes, with its ``device``, ``weights``, ``adapter`` and ``revision``, or a
    `Pipeline`. ``batch_size`` counts the documents of a forward pass; "auto" takes as many as have `AUTO_TOKENS` tokens
    together, at most ``max_batch_size``. ``seed`` is that of texts that are drawn. The other settings are those of
    lm_eval's models. Raises ConfigError, CheckpointError and ResourceError.
    """

    eot_token_id, prefix_token_id, tokenizer_name = 0, 0, ""

    def __init__(
        self, pretrained: Any = "", *, device: str = "auto", batch_size: int | str = "auto", seed: int = 0,
        max_batch_size: int | None = None, weights: str = "auto", adapter: str = "", revision: str = "",
        max_length: int | None = None, max_gen_toks: int = 256, prefix_token_id: int | None = None, **others: Any,
    ):  # fmt: skip
        super().__init__()
        for name in others:
            raise ConfigError(unknown("model_args", name, ["pretrained", *(PlaitLM.__init__.__kwdefaults__ or ())]))
        size, is_auto = str(batch_size), str(batch_size).startswith("auto")
        require(is_auto or (size.isdecimal() and int(size) > 0), "batch_size", batch_size, "auto, or a number above 0")
        if not isinstance(pretrained, Pipeline):
            load: Any = plait.load
            pretrained = load(str(pretrained), device=device, weights=weights, adapter=adapter, revision=revision)
        self.pipeline, self.model, self._device = pretrained, pretrained.model, pretrained.model.device
        self.layout = self.model.config.layout
        self.host, self.codec = self.layout.host, pretrained.codecs[self.layout.host]
        require(self.codec.kind == "text", "pretrained: the first modality", self.host, "text, as lm_eval's tasks are")
        self.model.new_cache(1, 1)  # an error where the score of an id would depend on later ones
        longest = self.model.config.max_positions
        require(max_length is None or 1 < max_length <= longest, "max_length", max_length, f"from 2 to {longest}")
        self.max_length, self.max_gen_toks, self.seed = max_length or longest, max_gen_toks, seed
        self.batch_size, self.max_batch_size = None if is_auto else int(size), max_batch_size or AUTO_TOKENS
        tokenizer = getattr(self.codec, "tokenizer", None)
        self.tokenizer: Any = tokenizer if hasattr(tokenizer, "apply_chat_template") else None
        self.tokenizer_name = str(getattr(self.tokenizer, "name_or_path", self.codec.name)).replace("/", "__")
        ends = (prefix_token_id, self.layout.bos, getattr(self.tokenizer, "bos_token_id", None), self.layout.eos)
        self.eot_token_id, self.prefix_token_id = self.layout.eos, next(i for i in ends if i is not None)
        allowed = AllowedIds(self.model, {}, 1)
        state = allowed.index["host"]
        self._blocked = allowed.table[state, : allowed.ranges[state][1]]

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "PlaitLM":
        """Return the model of ``--model_args``, which win over other options of the command."""
        unsaid = (None,) if torch.cuda.is_available() else (None, "cuda:0")  # the command's default is a GPU
        return cls(**({k: v for k, v in (additional_config or {}).items() if v not in unsaid} | arg_dict))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, behind <bos> where documents open with one; None: unless the text does itself."""
        ids, bos = ids_of(self.codec.encode([string])[0]).tolist(), self.layout.bos
        opens = ids[:1] != [bos] if add_special_tokens is None else add_special_tokens
        return ids if bos is None or not opens else [bos, *ids]

    def tok_decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if self.tokenizer is not None:
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return self.codec.decode([Encoded(ids=np.array(ids, np.int64))])[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the tokenizer's own template writes it."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError("apply_chat_template: the text codec of this model has no chat template, leave it out")
        write = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=add_generation_prompt,
                        continue_final_message=not add_generation_prompt)  # fmt: skip
        try:
            return write(chat_history)
        except TemplateError:  # of a template that takes no system message
            return write([message for message in chat_history if message["role"] != "system"])

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation of a context, and whether its ids are the likeliest."""
        asked: dict[Fed, list[int]] = {}
        for i, (texts, context, ids) in enumerate(requests):
            if not 0 < len(ids) <= self.max_length:
                raise DataError(f"task: {shown(texts[1])} has {len(ids)} tokens, it must have 1 to {self.max_length}")
            # those that differ in the last id alone, as the letters of a choice do, are fed once
            asked.setdefault(((*context, *ids[:-1])[-self.max_length :], len(ids)), []).append(i)
        self._warn(sum(len(context) + len(ids) - 1 > self.max_length for _, context, ids in requests))
        answers, left = [(0.0, False)] * len(requests), sorted(asked, key=lambda fed: -len(fed[0]))
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            while left:
                size = self.batch_size or max(1, min(AUTO_TOKENS // len(left[0][0]), self.max_batch_size))
                batch, left = left[:size], left[size:]
                for i, answer in self._answers(batch, [[(i, requests[i][2]) for i in asked[fed]] for fed in batch]):
                    answers[i] = answer
                    if requests[i][0] is not None:  # else it is a window of a text
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                    bar.update()
        return answers

    @torch.no_grad()
    def _answers(self, asked: list[Fed], scored: list[list[tuple[int, list[int]]]]) -> Iterator[tuple]:
        """Yield the number of each request of a batch and its answer; ``scored`` are numbers and continuations."""
        batch, device = assemble([self._spelt(*fed) for fed in asked], self.model.config), self.model.device
        places = [np.arange(end - n, end) for end, (_, n) in zip(np.cumsum(batch.lengths), asked, strict=True)]
        tokens = np.concatenate([place for place, some in zip(places, scored, strict=True) for _ in some])
        following = torch.tensor([i for some in scored for _, ids in some for i in ids], device=device)
        found = torch.empty(2, len(tokens), dtype=torch.float64)
        with autocast(self.pipeline.precision, device):
            hidden = self.model(batch.to(device))
            for at in range(0, len(tokens), SCORED_AT_ONCE):
                by_tower, back = rows_of(batch, tokens[at : at + SCORED_AT_ONCE])
                logits = self.model.logits(hidden, [to_device(rows, device) for rows in by_tower])
                logits = logits[:, : len(self._blocked)].index_select(0, to_device(back, device))
                log_p, ids = (logits + self._blocked).log_softmax(-1), following[at : at + SCORED_AT_ONCE]
                found[0, at : at + len(ids)] = log_p.gather(1, ids[:, None]).squeeze(1)
                found[1, at : at + len(ids)] = log_p.argmax(-1) == ids
        for i, answered in (pair for some in scored for pair in some):
            (log_p, likeliest), found = found[:, : len(answered)], found[:, len(answered) :]
            yield i, (float(log_p.sum()), bool(likeliest.all()))

    def _spelt(self, ids: Sequence[int], scored: int) -> list[Run]:
        """Write a context, and what is made after it, as training does."""
        opens, edge = int(ids[0] == self.layout.bos), len(ids) - scored + 1
        parts = ((ids[opens:edge], True), (ids[edge:], False))
        runs = [Run(self.host, np.array(part, np.int64), role=role_of(given=given)) for part, given in parts]
        return [one(self.host, ids[0]), *runs] if opens else runs

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows of ``max_length`` where it is longer."""
        windows, owners = [], []
        # a <bos> that the tokenizer has is an id of the text, as lm_eval counts it; another is none that may follow
        special = False if self.layout.bos in self.layout.added else None
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=special)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        totals = np.bincount(np.array(owners, int), scores, minlength=len(requests)).tolist()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to a text that ends it (``until``)."""
        wanted = [self._request(i, *request.args) for i, request in enumerate(requests)]
        self._warn(sum(is_cut for *_, is_cut in wanted))
        waiting = sorted((request for request, *_ in wanted), key=lambda request: sum(map(len, request.prompt)))
        most = self.batch_size or min(self.pipeline.config.batch_size, self.max_batch_size)
        limits = {"max_length": self.max_length, "max_rows": most}
        engine = Generator(self.model, **self.pipeline.engine_settings | limits)
        engine.reserve(waiting)
        texts = [""] * len(wanted)
        with tqdm(total=len(wanted), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            while waiting or engine.rows:
                while waiting and (not engine.rows or engine.fits(waiting[-1])):
                    engine.add(waiting.pop())
                    engine.rows[-1].host_tokens = 1  # so that its first id may be one that ends a text
                ended: list[Any] = engine.step()
                over = [row.id for row in engine.rows if self._is_over(row.tokens, *wanted[row.request.number])]
                for result in (*ended, *map(engine.cancel, over)):
                    i = result.request.number
                    text = self.tok_decode([token for part in result.parts for token in part.ids.tolist()])
                    texts[i] = postprocess_generated_text(text, wanted[i][1], None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.update()
        return texts

    def _is_over(self, made: list[int], request: Request, until: list[str], *_: bool) -> bool:
        text = self.tok_decode(made[-1 - max(len(end.encode()) for end in ["", *until]) :], False)
        return len(made) >= request.max_tokens[self.host] - 1 or any(end in text for end in until)

    def _request(self, number: int, context: str, settings: dict[str, Any]) -> tuple[Request, list[str], bool]:
        """Return what a context and its settings ask for, the texts that end it, and whether the context is cut."""
        for name, value in settings.items():
            if name not in SETTINGS and (name, value) != ("num_beams", 1):
                raise ConfigError(unknown("generation_kwargs", name, SETTINGS))
        said, eos = normalize_gen_kwargs(settings, self.max_gen_toks), self.layout.eos
        most = said["max_gen_toks"]
        require(0 < most < self.max_length, "generation_kwargs.max_gen_toks", most,
                f"above 0 and below max_length ({self.max_length})")  # fmt: skip
        end = None if eos in self.layout.added else self.tok_decode([eos], False)
        drawn = SamplingConfig(float(said.get("temperature", 0.0)), said.get("top_k", 0), said.get("top_p", 1.0))
        ids = self.tok_encode(context) or [self.prefix_token_id]
        opens = int(ids[0] == self.layout.bos)  # the generator writes it, also before what is left of a text
        kept = ids[max(opens, len(ids) + most + opens - self.max_length) :]
        prompt = [Part(self.host, np.array(kept, np.int64))] if kept else []
        request = Request(prompt, self.host, {self.host: drawn}, {self.host: most + 1}, seed=self.seed, number=number)
        return request, [t for t in handle_stop_sequences(said["until"], end) if t], len(kept) + opens < len(ids)

    def _warn(self, cut: int) -> None:
        if cut:
            logging.getLogger("plait").warning("%d texts are cut on the left to max_length (%d)", cut, self.max_length)


def main() -> None:
    """Run lm_eval's own command, with the model `plait`."""
    try:
        cli_evaluate()
    except PlaitError as error:
        print(f"plait: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

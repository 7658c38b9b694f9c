"""Texts, against the texts of their documents, against what the source of the data knows, and against training's."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from plait.codecs import Media
from plait.config.run import EvaluateConfig
from plait.evaluate.held import Held
from plait.evaluate.judge import Found, Judge
from plait.evaluate.measures import mean_of, share_of
from plait.evaluate.sentences import Sentences
from plait.evaluate.texts import error_measures, text_likeness, text_measures


class TextJudge(Judge):
    """Measures texts: captions, transcripts, answers."""

    setting = "captions"
    modules: ClassVar = ("sacrebleu", "pycocoevalcap.cider.cider_scorer", "jiwer", "rapidfuzz.process", "scipy.stats")

    def __init__(self, config: EvaluateConfig):
        super().__init__(config)
        self.sentences = Sentences(config.sentences) if config.sentences else None

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure texts; "" where the model said nothing."""
        said = [text or "" for text in made]
        is_heard = any(held.library.pipeline.codecs[name].kind == "audio" for name in held.path[:-1])
        measures = text_measures(said, held.texts)
        measures |= error_measures(said, held.texts) if is_heard else {}
        found = Found(measures, ranked_by="CIDEr-D" if "cider" in measures else "ROUGE-L")
        best = measures.get("cider") or measures["rouge_l"]
        found.ranking = best.items.parts if best.items else None
        if self.sentences:
            found.measures["sentence"] = mean_of(self.sentences.similarities(said, held.texts))
            shuffled = self.sentences.similarities([*held.texts[1:], *held.texts[:1]], held.texts)
            found.beside["sentence_shuffled"] = float(np.mean(shuffled))
        self._memory(said, held, found)
        if held.truths:
            hits = held.truths.scores(said, held.metas)
            found.measures |= {f"{name}_accuracy": share_of(values) for name, values in hits.items()}
            found.beside |= {f"{k}_chance": v for k, v in held.truths.chances.items() if k in hits}
        return found

    def _memory(self, said: Sequence[str], held: Held, found: Found) -> None:
        """Add how near texts are to the nearest training text, beside what the documents' own are."""
        known = [text for text in held.training.first_texts if text]
        if not known:
            return
        exact = set(known)
        for end, texts in {"": said, "_real": held.texts}.items():
            near = {"in_training": share_of([text in exact for text in texts]),
                    "neighbour": mean_of(text_likeness(texts, known))}  # fmt: skip
            found.measures |= near if not end else {}
            found.beside |= {f"{name}{end}": measure.value for name, measure in near.items()} if end else {}
        found.beside["neighbour_among"] = float(len(known))

"""Speech: is it understood, is it as long as speech is, and was it remembered?

recognised: the share of clips that a recogniser tells from about 100 other texts (`plait.evaluate.recogniser`). wer and
cer: the errors of what it hears; with `evaluate.recogniser` of what an open one hears, in any words. Beside them stand
those of real speech and of the codec's round trip. seconds: the mean length.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.codecs import Media
from plait.codecs.mel import HOP, RATE, LogMel
from plait.codecs.sounds import resample
from plait.config.run import EvaluateConfig
from plait.evaluate.dnsmos import check_packages, dnsmos
from plait.evaluate.held import Held
from plait.evaluate.judge import Found, Judge
from plait.evaluate.measures import hits_array, hits_list, hits_share, mean_of, ratio_of, share_of
from plait.evaluate.neighbours import likeness
from plait.evaluate.recogniser import recognise_all
from plait.evaluate.texts import text_errors
from plait.evaluate.transcription import Transcriber, transcriber

FRAMES = 32
"""Moments that a clip is compared at, whatever its length."""


class SpeechJudge(Judge):
    """Measures clips of speech, float32 [samples] at the codec's rate."""

    setting = "clips"
    modules: ClassVar = ("pocketsphinx", "jiwer", "scipy.stats")

    def __init__(self, config: EvaluateConfig):
        super().__init__(config)
        if config.dnsmos:
            check_packages()
        self.transcriber: Transcriber | None = transcriber(config.recogniser) if config.recogniser else None

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure clips."""
        own = self._judged(made, held)
        settings = {"recogniser": self.transcriber.key if self.transcriber else "", "dnsmos": self.config.dnsmos}
        beside = {
            name: held.references(f"speech_{name}", functools.partial(self._reference, name, held), **settings)
            for name in ("real", "codec")
        }
        found = Found(ranked_by="likeness to the document's own clip")
        if "hits" in own:
            self._understood(own, beside, found)
        for name in ("seconds", "mos"):
            if name in own:
                found.measures[name] = mean_of(own[name].tolist())
                found.beside |= {f"{name}_{end}": float(arrays[name].mean()) for end, arrays in beside.items()}
        self._compared(own, beside, held, found)
        return found

    def _reference(self, name: str, held: Held) -> dict[str, np.ndarray]:
        """Return what is said of the documents' own clips, or of the codec's round trip of them."""
        return self._judged(held.real if name == "real" else held.codec.decode(held.codec.encode(held.real)), held)

    def _judged(self, clips: Sequence[Media], held: Held) -> dict[str, np.ndarray]:
        """Return what can be said of each clip by itself, as arrays with a row for each."""
        rate = held.codec.sample_rate
        found = {"seconds": np.array([len(clip) / rate for clip in clips]), "mel": mel_features(clips, rate).numpy()}
        if self.config.dnsmos:
            found["mos"] = np.array([rating["ovrl"] for rating in dnsmos(clips, rate)])
        if not all(held.texts):
            return found
        hits, heard = recognise_all(clips, held.texts, rate, held.advance)
        found["hits"] = hits_array(hits)
        if self.transcriber:
            heard = self.transcriber.transcribe(clips, rate)
        errors = text_errors(heard, held.texts)
        # a text that its recogniser cannot say counts for nothing, as it does among the hits
        tried = np.array([bool(self.transcriber) or hit is not None for hit in hits])
        return found | {name: np.array(pairs) * tried[:, None] for name, pairs in errors.items()}

    def _understood(self, own: dict[str, np.ndarray], beside: dict[str, Any], found: Found) -> None:
        """Add what recognisers understand."""
        found.measures["recognised"] = share_of(hits_list(own["hits"]))
        originals, copies = (hits_share(beside[name]["hits"]) for name in ("real", "codec"))
        found.beside |= {"codec_recognised_originals": originals,
                         "codec_recognised": copies / originals if originals else 0.0}  # fmt: skip
        for name in ("wer", "cer"):
            if name in own:
                found.measures[name] = ratio_of(*own[name].T.tolist())
                found.beside |= {f"{name}_{end}": float(x[name][:, 0].sum() / max(x[name][:, 1].sum(), 1))
                                 for end, x in beside.items()}  # fmt: skip

    def _compared(self, own: dict[str, np.ndarray], beside: dict[str, Any], held: Held, found: Found) -> None:
        """Add how like clips are to the documents' own, to another document's, and to the nearest of training."""
        made, real, copies = (torch.from_numpy(x["mel"]) for x in (own, beside["real"], beside["codec"]))
        rate = held.codec.sample_rate
        training = held.training_features("speech", lambda clips: mel_features(clips, rate))
        measures, others, found.ranking = likeness(made, real, copies, training)
        found.measures |= measures
        found.beside |= others


def mel_features(clips: Sequence[Media], sample_rate: int) -> Tensor:
    """Return float32 [B, FRAMES * mel bins]: log-mel spectrograms, stretched to one length."""
    mel, rows = LogMel(), []
    for clip in clips:
        wave = resample(np.asarray(clip, np.float32), sample_rate, RATE)
        whole = np.pad(wave, (0, -len(wave) % HOP if len(wave) else HOP))
        with torch.no_grad():
            rows.append(F.adaptive_avg_pool1d(mel(torch.from_numpy(whole)[None]), FRAMES).flatten(1))
    return torch.cat(rows)

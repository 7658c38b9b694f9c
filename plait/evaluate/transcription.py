"""What is said in speech, in any words, by the name of a recogniser (evaluate.recogniser).

- pocketsphinx: US English with the n-gram language model that its package ships.
- a folder, or owner/name[@revision] on the Hugging Face Hub: a speech recognition model of transformers, such as
  Whisper or wav2vec 2.0, which decodes greedily.
"""

import functools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plait.common.cores import num_cores
from plait.common.errors import CheckpointError, ResourceError
from plait.evaluate.recogniser import SAMPLE_RATE, Recogniser

if TYPE_CHECKING:
    import torch

WHERE = "evaluate.recogniser"


class Transcriber(Protocol):
    """Writes down what is said."""

    key: str
    """Names the recogniser and its weights."""

    def transcribe(self, clips: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Return the text of each clip, float32 [samples]; "" where nothing is heard."""
        ...


def transcriber(name: str, device: "str | torch.device" = "cpu") -> Transcriber:
    """Return the transcriber of a name. Raises CheckpointError for no such model, ResourceError without a package."""
    return PocketSphinx() if name == "pocketsphinx" else PretrainedTranscriber(name, device)


class PocketSphinx:
    """pocketsphinx with its own language model, in a process for each core: it is slow, and uses one."""

    def __init__(self) -> None:
        try:
            import pocketsphinx  # noqa: F401
        except ImportError:
            message = f"{WHERE}: package 'pocketsphinx' is not installed, install it: pip install 'plait[judges]'"
            raise ResourceError(message) from None
        self.key = f"pocketsphinx {metadata.version('pocketsphinx')}"

    def transcribe(self, clips: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Return the words heard in each clip, which do not depend on the other clips."""
        parts = [part for part in np.array_split(np.arange(len(clips)), num_cores()) if len(part)]
        jobs = [{int(i): clips[i] for i in part} for part in parts]
        hear = functools.partial(_hear, sample_rate=sample_rate)
        if len(jobs) < 2:
            return [text for job in jobs for text in hear(job)]
        with ProcessPoolExecutor(len(jobs), multiprocessing.get_context("spawn")) as pool:
            return [text for texts in pool.map(hear, jobs) for text in texts]


def _hear(clips: dict[int, np.ndarray], sample_rate: int) -> list[str]:
    """Return the words heard in clips by their indices."""
    recogniser = _OpenRecogniser(sample_rate)
    return [recogniser.hear(clip, index) for index, clip in clips.items()]


class _OpenRecogniser(Recogniser):
    """A recogniser with a language model in the place of a grammar."""

    def __init__(self, sample_rate: int):
        import pocketsphinx

        models = Path(pocketsphinx.get_model_path("en-us"))
        self.sample_rate = sample_rate
        self._decoder = pocketsphinx.Decoder(
            hmm=str(models / "en-us"), dict=str(models / "cmudict-en-us.dict"), lm=str(models / "en-us.lm.bin"),
            samprate=SAMPLE_RATE, loglevel="FATAL",
        )  # fmt: skip


class PretrainedTranscriber:
    """A speech recognition model of transformers."""

    def __init__(self, name: str, device: "str | torch.device" = "cpu"):
        from plait.codecs.saved import quiet
        from plait.evaluate import pretrained

        folder = pretrained.folder_of(name, WHERE, ["pocketsphinx"])
        config = pretrained.config_of(folder, name, WHERE)
        import transformers
        from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq

        auto_class: Any = AutoModelForSpeechSeq2Seq
        if type(config) not in auto_class._model_mapping:
            auto_class = AutoModelForCTC
        if type(config) not in auto_class._model_mapping:
            raise CheckpointError(
                f"{WHERE}: {name!r} is no speech recognition model (model_type {config.model_type!r}), name one, "
                "such as Whisper or wav2vec 2.0 with its letters (Wav2Vec2ForCTC)"
            )
        model, _ = pretrained.model_of(auto_class, folder, name, WHERE)
        extractor = pretrained.part_of(transformers.AutoFeatureExtractor, folder, name, WHERE, "feature extractor")
        tokenizer = pretrained.part_of(transformers.AutoTokenizer, folder, name, WHERE, "tokenizer")
        with quiet():
            self.pipeline: Any = transformers.pipeline(
                "automatic-speech-recognition", model=model, feature_extractor=extractor, tokenizer=tokenizer,
                device=device,
            )  # fmt: skip
        self.sample_rate: int = extractor.sampling_rate
        self._is_whisper = config.model_type == "whisper"
        self._generates = auto_class is AutoModelForSpeechSeq2Seq
        self.key = f"{name} {pretrained.folder_checksum(folder)}"

    def transcribe(self, clips: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Return the text of each clip, one at a time: others beside it in a batch would change it a little."""
        from plait.codecs.saved import quiet

        with quiet():
            return [self._transcribed(clip, sample_rate) for clip in clips]

    def _transcribed(self, clip: np.ndarray, sample_rate: int) -> str:
        from plait.codecs.sounds import resample

        wave = resample(np.asarray(clip, np.float32), sample_rate, self.sample_rate)
        wave = np.pad(wave, (0, max(0, self.sample_rate // 10 - len(wave))))  # convolutions need some samples
        options: dict[str, Any] = {"generate_kwargs": {"num_beams": 1, "do_sample": False}} if self._generates else {}
        if self._is_whisper and len(wave) > self.pipeline.feature_extractor.n_samples:
            options["return_timestamps"] = True  # half a minute at a time
        return str(self.pipeline(wave, **options)["text"]).strip()

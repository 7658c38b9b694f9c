"""A folder of files as a source: files that share a name up to its first dot are one sample, as in a WebDataset tar.

Subfolders are read too. Names are listed once, in alphabetical order; a sample is read when it is asked for.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from plait.prepare.raw import Blob
from plait.prepare.remote import MAX_ITEM_BYTES, listed, reason_of
from plait.prepare.tar import Sample, sample_of


class Folder:
    """The samples of a folder, by their number."""

    def __init__(self, path: str):
        self._path = Path(path)
        self._samples: list[tuple[str, list[tuple[str, str]]]] | None = None
        self.left_out: Counter[str] = Counter()
        """Files that are part of no sample, by the rule that leaves them out; known once samples were listed."""

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """Yield the number of every sample, and the sample."""
        for number in range(len(self._index())):
            yield number, self.sample(number)

    def sample(self, number: int) -> Sample:
        """Return the sample of a number that `samples` gave."""
        samples = self._index()
        if number >= len(samples):
            return Sample("", wrong="the folder has fewer files than when it was listed")
        key, files = samples[number]
        sample = Sample(key, size=len(files))
        for suffix, name in files:
            sample.wrong = sample.wrong or self._add(sample, suffix, name)
        return sample

    def _add(self, sample: Sample, suffix: str, name: str) -> str:
        """Read a file of a sample; return why it makes the sample a broken one, "" where it does not."""
        path = self._path / name
        if suffix in sample.members:
            return f"two files differ in small and capital letters alone: {name!r}"
        try:
            if path.is_symlink() or not path.is_file():
                return f"{name!r} is a link or a device, only plain files are allowed"
            size = path.stat().st_size + sum(len(blob.data) for blob in sample.members.values())
            if size > MAX_ITEM_BYTES:
                return f"file {name!r} brings the sample above {MAX_ITEM_BYTES:,} bytes"
            sample.members[suffix] = Blob(name, path.read_bytes())
        except OSError as error:
            return f"{name!r} cannot be read ({reason_of(error)})"
        return ""

    def _index(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """List the files once: name and files (suffix and name) of every sample."""
        if self._samples is None:
            samples: dict[str, list[tuple[str, str]]] = {}
            self.left_out.clear()
            for name in listed(str(self._path)):
                key, suffix, left_out = sample_of(name)
                if left_out:
                    self.left_out[left_out] += 1
                else:
                    samples.setdefault(key, []).append((suffix, name))
            self._samples = list(samples.items())
        return self._samples

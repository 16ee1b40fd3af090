"""Where weights come from: the Hub, a file, the packaged demo or a seed. No torch: a wrong name is told at once."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from featstore.extractors import ExtractorError

_HUB = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_RANDOM = re.compile(r"random:(?P<seed>\d{1,18})(?P<full>:full)?")


class WeightsError(ExtractorError):
    """Weights cannot be had or do not fit; the text says what to do."""


@dataclass(frozen=True)
class Source:
    """A parsed ``--weights``: a file (`path`), or else a seed (`seed`).

    Attributes
    ----------
    label : what a feature's settings record: "hf:…", "demo", "random:…", or "file" (never a path of this machine).
    """

    label: str
    path: Path | None = None
    seed: int = 0
    full: bool = False


def resolve(weights: str, *, file: str, demo: str, suffixes: tuple[str, ...]) -> Source:
    """Find the weights that `weights` names, downloading them where it names the Hub.

    Parameters
    ----------
    weights : ``hf:OWNER/REPO[/FILE][@REVISION][#sha256=HEX]``, ``demo``, ``random:SEED`` (small network),
        ``random:SEED:full`` (published size) or a path.
    file : name of the file in a Hub repository that names none.
    demo : file name of the packaged demo weights.
    suffixes : file name endings that can be loaded.

    Raises
    ------
    WeightsError : not understood, not there, not to be had, or of the wrong kind.
    """
    if weights.startswith("hf:"):
        found = _HUB.fullmatch(weights)
        if not found:
            raise WeightsError(f"weights {weights!r}: expected hf:OWNER/REPO[/FILE][@REVISION][#sha256=64 HEX DIGITS]")
        path = _download(found["repo"], found["file"] or file, found["revision"])
        if found["sha256"]:
            _check_sha256(path, found["sha256"])
        label = weights
    elif weights.startswith("random:"):
        found = _RANDOM.fullmatch(weights)
        if not found:
            raise WeightsError(f"weights {weights!r}: expected random:SEED or random:SEED:full, SEED 0 or more")
        return Source(label=weights, seed=int(found["seed"]), full=bool(found["full"]))
    elif weights == "demo":
        path, label = Path(__file__).parent / "demo" / demo, "demo"
        if not path.is_file():
            raise WeightsError(
                f"the demo weights {demo} are not in this installation; reinstall whowhen, or pass --weights PATH, "
                "hf:REPO or random:0"
            )
    else:
        path, label = Path(weights).expanduser(), "file"
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise WeightsError(
                f"weights file {weights} {what}; expected a file ({' or '.join(suffixes)}), hf:OWNER/REPO, demo or "
                "random:SEED"
            )
    if path.suffix not in suffixes:
        raise WeightsError(f"weights file {path.name}: expected {' or '.join(suffixes)}, found {path.suffix or 'none'}")
    return Source(label=label, path=path)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_sha256(path: Path, expected: str) -> None:
    if (found := file_sha256(path)) != expected:
        raise WeightsError(
            f"weights file {path.name}: expected SHA-256 {expected}, found {found}; it is another file than the one "
            "you pinned: check the revision and the digest, do not load it"
        )


def _download(repo: str, file: str, revision: str | None) -> Path:
    """The file in the Hub's cache, downloaded if need be."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "huggingface_hub":
            raise
        raise WeightsError(
            "hf:REPO needs huggingface_hub; where whowhen was cloned: pip install -e '.[extract]'"
        ) from None

    # Each of its five tries would print a paragraph; the one line below says what to do.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    where = f"{file} of https://huggingface.co/{repo}"
    login = "`hf auth login` (or set HF_TOKEN)"
    else_file = f"or download {file} elsewhere and pass --weights PATH"
    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except GatedRepoError:
        problem = f"the repository is gated: accept its licence on that page, log in with {login} and try again"
    except LocalEntryNotFoundError:
        problem = "the Hub cannot be reached and the file is not in the cache: connect this machine"
    except RevisionNotFoundError:
        problem = f"there is no revision {revision!r}: check it"
    except RepositoryNotFoundError:
        problem = f"there is no such repository, or it is private: check the name, log in with {login}"
    except EntryNotFoundError:
        problem = "the repository has no such file: name it as hf:OWNER/REPO/FILE"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        problem = f"the Hub answered with status {status}: log in with {login}, try again later"
    except (OSError, ValueError) as error:
        problem = f"download failed ({type(error).__name__}: {str(error).splitlines()[0]}): try again"
    raise WeightsError(f"cannot get {where}: {problem}, {else_file}")

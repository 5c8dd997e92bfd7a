"""Fetch a world's weights from huggingface.co: only its files, with progress, going on where an earlier try broke off.

Files end up in huggingface's own cache, in its own layout. A part of one waits there under a name of ours, because the
library throws away what it has when a download breaks off, and these are gigabytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from game.options import UsageError

REPOSITORY = re.compile(r"(?:https?://)?(?:huggingface\.co/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?: from huggingface\.co)?/?")
EXTRA = "pip install 'reverie[hub]'"


class FetchError(UsageError):
    """A file could not be fetched; one line with what to do."""


def repository(source: str | None) -> str | None:
    """The repository on huggingface.co that a world's ``weights.source`` names, such as "Skywork/Matrix-Game-2.0"; None for no such."""
    found = REPOSITORY.fullmatch((source or "").strip())
    named = found is not None and "huggingface.co" in source
    return found[1] if named else None


def fetch(repo: str, files: Sequence[str]) -> Path:
    """The folder that holds ``files`` of the repository at one revision; what is not in huggingface's cache is downloaded first.

    Honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Raises FetchError without the library, the network, the room
    or the file, and when what arrived is not what was announced.
    """
    hub = _hub()
    revision, folder = "main", Path()
    for count, name in enumerate(files, 1):
        print(f"fetching {count} of {len(files)}: {repo}/{name}", file=sys.stderr, flush=True)
        try:
            path = _fetch_one(hub, repo, name, revision)
        except FetchError:
            raise
        except Exception as error:
            raise FetchError(_why(error, repo, name)) from None
        folder = path.parents[len(Path(name).parts) - 1]
        revision = folder.name  # the commit: all files are of the same one
    return folder


def _hub() -> SimpleNamespace:
    """What is used of huggingface_hub. It is optional, and takes a second to import."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, file_download, utils

        return SimpleNamespace(
            offline=constants.is_offline_mode,
            cache=Path(constants.HF_HUB_CACHE),
            url=hub.hf_hub_url,
            metadata=hub.get_hf_file_metadata,
            download=hub.hf_hub_download,
            http_get=file_download.http_get,
            folder_name=file_download.repo_folder_name,
            lock=utils.WeakFileLock,
            headers=utils.build_hf_headers,
        )
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ImportError) and error.name == "huggingface_hub"
        problem = "huggingface_hub is not installed" if missing else f"this huggingface_hub lacks something ({error})"
        raise FetchError(f"--fetch needs a package of its own, and {problem}: {EXTRA}") from None


def _fetch_one(hub: SimpleNamespace, repo: str, name: str, revision: str) -> Path:
    online = not hub.offline() and _complete_blob(hub, repo, name, revision)
    return Path(hub.download(repo, name, revision=revision, local_files_only=not online))  # enters the blob under its name


def _complete_blob(hub: SimpleNamespace, repo: str, name: str, revision: str) -> bool:
    """Have the file's bytes in the cache, under their hash, downloading what is missing of them. False without a network."""
    url = hub.url(repo, name, revision=revision)
    try:
        about = hub.metadata(url)
    except Exception as error:
        if _kinds(error) & {"ConnectError", "TimeoutException"}:
            return False  # what the cache has will do
        raise
    if about.etag is None or about.size is None or not re.fullmatch(r"[\w.-]+", about.etag):
        return True  # not as the hub keeps weights; left to the library
    folder = hub.cache / hub.folder_name(repo_id=repo, repo_type="model")
    blob, locks = folder / "blobs" / about.etag, hub.cache / ".locks" / folder.name
    for place in (blob.parent, locks):
        place.mkdir(parents=True, exist_ok=True)
    with hub.lock(locks / f"{about.etag}.lock"):
        if not blob.exists():
            _download(hub, url, about, blob, name)
    return True


def _download(hub: SimpleNamespace, url: str, about: Any, blob: Path, name: str) -> None:
    part = blob.with_name(f"{blob.name}.reverie.incomplete")
    here = part.stat().st_size if part.exists() else 0
    if here > about.size:
        part.unlink()
        here = 0
    room = shutil.disk_usage(blob.parent).free
    if room < about.size - here:
        raise FetchError(f"no room for {name}: {about.size - here:,} bytes are to come, {room:,} are free in {blob.parent}")
    headers = hub.headers()
    if urlsplit(about.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a token is for the hub, not for whoever stores its files
    with open(part, "ab") as file:
        hub.http_get(about.location, file, resume_size=here, headers=headers, expected_size=about.size, displayed_filename=name)
    _check_hash(part, about.etag, name)
    os.replace(part, blob)


def _check_hash(part: Path, etag: str, name: str) -> None:
    """Large files are announced by their sha256; one put together in several tries is worth a look."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        part.unlink()
        raise FetchError(f"{name} arrived damaged (sha256 {found[:12]}… instead of {etag[:12]}…) and was thrown away; fetch it again")


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _why(error: Exception, repo: str, name: str) -> str:
    """One line for what the library raised. By name: its classes have moved between versions."""
    kinds = _kinds(error)
    again = "run the same command again to go on where it stopped"
    if "OfflineModeIsEnabled" in kinds or ("LocalEntryNotFoundError" in kinds and _offline()):
        return f"{repo}/{name} is not in huggingface's cache, and HF_HUB_OFFLINE forbids fetching it; unset it, or give --weights"
    if "GatedRepoError" in kinds:
        return f"{repo} asks for your consent: accept its terms on huggingface.co, then set HF_TOKEN"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no {repo} on huggingface.co (or it is not public: set HF_TOKEN)"
    if kinds & {"EntryNotFoundError", "RemoteEntryNotFoundError"} and "LocalEntryNotFoundError" not in kinds:
        return f"{repo} has no file {name}; is the world's yaml out of date?"
    if kinds & {"LocalEntryNotFoundError", "ConnectError", "TimeoutException", "NetworkError", "ConnectionError"}:
        return f"cannot reach huggingface.co for {repo}/{name}; check the network ({again}), or download it elsewhere and give --weights"
    words = " ".join(str(error).split())[:200]
    return f"fetching {repo}/{name} broke off ({type(error).__name__}: {words}); {again}"


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()

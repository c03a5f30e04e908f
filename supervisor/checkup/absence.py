"""Why there is no model server, and what to do: not installed, not running, on another host, without a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from daemon.backends.http import brief
from protocol.errors import ModelServerError
from supervisor.config import Loaded
from supervisor.sense import is_loopback

UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
INSTALL = "install it from https://ollama.com/download, then: ollama serve"


class Absence(ModelServerError):
    """No model server, or none with a model: why, and what to do. `cause` is one word, for programs."""

    def __init__(self, cause: str, sentence: str, remedy: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.remedy = remedy


def absence(error: BaseException, loaded: Loaded) -> Absence:
    """What an exception out of an HTTP exchange means here."""
    url, origin = loaded.url, loaded.origins.get("backend.url", "default")
    refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.ClientPayloadError | aiohttp.ClientResponseError | ValueError):
        return no_server(loaded, brief(str(error)) or type(error).__name__)
    if not is_loopback(urlsplit(url).hostname or ""):
        why = "refuses the connection" if refused else "does not answer"
        said = f", as {origin} says," if origin != "default" else ""
        return Absence(
            "other_host",
            f"the model server is on another host{said} and {url} {why}",
            f"see that it runs there and listens to others (OLLAMA_HOST=0.0.0.0), or correct {_key(loaded)}",
        )
    if not refused:
        sentence = f"{url} takes connections and does not answer ({brief(str(error)) or type(error).__name__})"
        return Absence("not_answering", sentence, f"restart what runs there, or correct {_key(loaded)}")
    if loaded.settings.backend.kind == "openai_compatible":
        return Absence("not_running", f"nothing listens at {url}", f"start the server there, or correct {_key(loaded)}")
    if shutil.which("ollama") is None:
        return Absence("not_installed", f"Ollama is not installed here, and nothing listens at {url}", INSTALL)
    unit = any(Path(folder, "ollama.service").exists() for folder in UNITS)
    start = "sudo systemctl start ollama" if unit else "ollama serve"
    return Absence("not_running", f"Ollama is installed, but nothing listens at {url}", start)


def no_server(loaded: Loaded, what: str) -> Absence:
    """Something answers there that is something else."""
    return Absence("not_one", f"what answers at {loaded.url} is no model server ({what})", f"correct {_key(loaded)}")


def no_model(loaded: Loaded) -> Absence:
    """It runs and is empty."""
    if loaded.settings.backend.kind == "openai_compatible":
        return Absence("no_model", f"the model server at {loaded.url} lists no model", "load one there")
    return Absence("no_model", f"Ollama runs at {loaded.url} and has no model", "chorus models pull llama3.2")


def _key(loaded: Loaded) -> str:
    """What to change: the variable or the flag that said it, else the key."""
    origin = loaded.origins.get("backend.url", "default")
    return origin if origin.isupper() or origin.startswith("--") else "backend.url"

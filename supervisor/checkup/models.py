"""The model server, as far as the team depends on it: there, with the right models, on which processor, how wide, how many."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from daemon.backends.memory import Memory
from daemon.backends.ollama_models import full_name
from protocol.control import StatusReport
from protocol.errors import ProtocolError
from protocol.settings import SpecialistConfig
from supervisor.checkup.absence import Absence, no_model
from supervisor.checkup.check import Check, fail, ok, warn
from supervisor.checkup.model_server import Inventory, Model, inventory
from supervisor.config import Loaded


async def models(loaded: Loaded, configs: list[SpecialistConfig], report: StatusReport | None) -> list[Check]:
    """Everything about the model server. `report` is what a supervisor that runs says, or None."""
    if report and (theirs := asked_instead(loaded, report)):
        fact = f"the team asks {theirs}, as it was started; what is configured here says {loaded.url}"
        differs = warn("model_server.url", fact, "the same OLLAMA_HOST or backend.url here, or chorus down and up")
        return [differs, *await _models(with_url(loaded, theirs), configs, report)]
    return await _models(loaded, configs, report)


def asked_instead(loaded: Loaded, report: StatusReport) -> str | None:
    """The model server of a team that was started with another configuration; None where it is the same."""
    theirs = report.backend.url
    if theirs is None or theirs.removesuffix("/v1") == loaded.url.removesuffix("/v1"):
        return None
    return theirs


def with_url(loaded: Loaded, url: str) -> Loaded:
    """The configuration as if it said so."""
    replace = msgspec.structs.replace
    settings = replace(loaded.settings, backend=replace(loaded.settings.backend, url=url))
    return replace(loaded, settings=settings, origins=loaded.origins | {"backend.url": "the supervisor"})


async def _models(loaded: Loaded, configs: list[SpecialistConfig], report: StatusReport | None) -> list[Check]:
    backend = loaded.settings.backend
    if backend.kind == "builtin":
        return [
            warn("model_server", "answers are a built-in echo: backend.kind is builtin", "set backend.kind to auto")
        ]
    try:
        found = await inventory(loaded)
        if not found.models:
            raise no_model(loaded)
    except Absence as error:
        return [_absent(error, loaded)]
    except ProtocolError as error:
        return [fail("model_server", error.sentence)]
    version = f" {found.version}" if found.version else ""
    what = "Ollama" if found.kind == "ollama" else "an OpenAI-compatible server"
    there = ok("model_server", f"{what}{version} answers at {found.url} with {len(found.models)} models")
    using = _using(loaded, configs, report)
    checks = [there, *_present(found, using), *_moved(report)]
    if found.kind == "ollama":
        checks += [*_loaded(found, using, loaded), _parallel(loaded, using)]
    return checks


def _absent(error: Absence, loaded: Loaded) -> Check:
    """With `auto`, and where none was ever seen or asked for, the team answers by the echo: that is a warning."""
    seen = Memory(str(loaded.dirs.state)).read().seen
    if loaded.settings.backend.kind == "auto" and not loaded.url_asked_for and not seen:
        return warn("model_server", f"{error.sentence}: answers are a built-in echo until it does", error.remedy)
    return fail("model_server", error.sentence, error.remedy)


def _using(loaded: Loaded, configs: list[SpecialistConfig], report: StatusReport | None) -> dict[str, list[str]]:
    """Models by their full names, and who uses them: as the team says, else as it is configured."""
    said = {one.name: one.model for one in report.specialists if one.backend != "builtin"} if report else {}
    default = Memory(str(loaded.dirs.state)).model_at(loaded.url)
    using: dict[str, list[str]] = {}
    for config in configs:
        if model := config.model or said.get(config.name) or default:
            using.setdefault(full_name(model), []).append(config.name)
    return using


def _present(found: Inventory, using: dict[str, list[str]]) -> Iterator[Check]:
    if not using:
        yield ok("model", "no model was chosen yet: the first that can answer will be")
    for model, who in using.items():
        users = f"{len(who)} specialists" if len(who) > 1 else who[0]
        if found.has(model):
            yield ok(f"model.{model}", f"{model} is there, for {users}")
        else:
            remedy = (
                f"chorus models pull {model}" if found.kind == "ollama" else "name one that it lists: chorus models"
            )
            yield fail(f"model.{model}", f"{model} is missing, which {users} should answer with", remedy)


def _moved(report: StatusReport | None) -> Iterator[Check]:
    if report and report.supervisor.state == "running" and report.backend.kind == "builtin":
        yield warn("backend", "the team still answers by its built-in echo", "it moves over by itself within 10 s")


def _loaded(found: Inventory, using: dict[str, list[str]], loaded: Loaded) -> Iterator[Check]:
    for name in using:
        if (model := found.loaded.get(name)) is None:
            if found.has(name):
                yield ok(f"loaded.{name}", f"{name} is not in memory: the first answer waits until it is")
            continue
        yield _processor(name, model)
        if check := _context(name, model, loaded):
            yield check


def _processor(name: str, model: Model) -> Check:
    if not model.size or model.size_vram is None:
        return ok(f"loaded.{name}", f"{name} is in memory")
    if model.size_vram == 0:
        return ok(f"loaded.{name}", f"{name} is in memory, on the CPU")
    if model.size_vram < model.size:
        share = model.size_vram / model.size
        fact = f"only {share:.0%} of {name} is on the GPU: the rest makes every token slow"
        return warn(f"loaded.{name}", fact, "a smaller model or num_ctx, or less parallel")
    return ok(f"loaded.{name}", f"{name} is in memory, on the GPU")


def _context(name: str, model: Model, loaded: Loaded) -> Check | None:
    wanted = loaded.settings.backend.options.get("num_ctx")
    if model.context_length is None:
        return None
    fact = f"{name} has a context of {model.context_length} tokens"
    if isinstance(wanted, int) and wanted != model.context_length:
        remedy = "another program may have loaded it: ollama stop " + name
        return warn(f"context.{name}", f"{fact}, and backend.options.num_ctx is {wanted}", remedy)
    if model.context_length <= loaded.settings.limits.answer_tokens:
        fact += f", and an answer may have {loaded.settings.limits.answer_tokens}: no room is left for the question"
        return warn(f"context.{name}", fact, "num_ctx in [backend.options], or a smaller limits.answer_tokens")
    return ok(f"context.{name}", fact)


def _parallel(loaded: Loaded, using: dict[str, list[str]]) -> Check:
    """Ollama does not tell how many it decodes at once."""
    most = max((len(who) for who in using.values()), default=len(loaded.settings.roster))
    parallel = loaded.settings.backend.parallel
    if parallel is not None or most == 1:
        return ok("parallel", f"{parallel or 1} answers at once from one model, for a team of {most}")
    return ok(
        "parallel",
        f"{most} specialists share one model, and Ollama answers one question at a time unless told otherwise",
        "OLLAMA_NUM_PARALLEL=4 for ollama serve, where memory allows, and parallel = 4 in [backend]",
    )

"""systemd's unit files as this installation wants them: from the files in `systemd/`, which are whole system units. Pure.

A user's manager starts everything as that user and may not close much off: its units have the keys that mean something there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.resources import files
from pathlib import Path

from msgspec import Struct

from protocol.settings import ChildConfig, GatewayConfig, Restarter
from supervisor.config import VARIABLES
from supervisor.fleet import systemctl

MARK = "# Written by `chorus service install`: changes of yours belong into `systemctl edit`."
SERVICE = "chorus.service"
TEMPLATE = "specialist@.service"
TARGET = "chorus-specialists.target"
POLKIT = Path("/etc/polkit-1/rules.d/50-chorus.rules")
ACCOUNT = "chorus"  # the user and the group of the system's team

PROGRAM = "/opt/chorus/bin/chorus"  # in the files; here it is whatever interpreter we run in
EXAMPLE = "apollo"  # whose socket unit is in `systemd/`
GROUP = "Environment=CHORUS_GROUP=chorus\n"
GATEWAYS_DESCRIPTION = "chorus, the gateway"

# What of a [Service] section is for a user's manager, too. Its other keys want privileges, or folders of the system.
USER_KEYS = re.compile(
    r"(Type|Notify|Exec|Restart|Watchdog|Timeout|KillMode|OOMPolicy|Syslog|LimitCORE|NoNewPrivileges|LockPersonality"
    r"|RestrictRealtime|RestrictSUIDSGID)"
)
# What of the surroundings decides which team this is; a manager does not know it. A secret is not among them.
SURROUNDINGS = frozenset({*VARIABLES, "CHORUS_CONFIG", "OLLAMA_HOST"}) - {"CHORUS_RESTARTER"}
USER_SURROUNDINGS = frozenset({"CHORUS_SOCKET", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"})


class Scope(Enum):
    """Whose manager keeps the team."""

    USER = "user"  # one user's own, with that user's folders
    SYSTEM = "system"  # the machine's, as the account `chorus`


class Team(Struct, frozen=True, kw_only=True):
    """What the unit files are made for. `program` is the argument list that stands for `chorus`.

    `children` are who gets units of their own where systemd is the restarter. `remote` where the model server or a client may
    be on another machine, `addresses` are those that can be listened on here.
    """

    scope: Scope
    restarter: Restarter
    program: Sequence[str]
    environ: Mapping[str, str]
    children: Sequence[ChildConfig]
    addresses: Sequence[str]
    remote: bool


def unit_files(team: Team) -> dict[str, str]:
    """The text of every unit file, by its name."""
    found = {SERVICE: _service(team, SERVICE)}
    if team.restarter == "systemd":
        found[TEMPLATE] = _service(team, TEMPLATE)
        for one in team.children:
            found[systemctl.socket(one.name)] = _socket(one, team.addresses)
            if isinstance(one, GatewayConfig):
                found[systemctl.service(one.name)] = _of_gateway(_service(team, TEMPLATE), one.name)
        found[TARGET] = _target(team)
    return {name: f"{MARK}\n{_body(text)}" for name, text in found.items()}


def polkit_rule(team: Team) -> str | None:
    """What lets the system's supervisor start and stop the specialists' units; None where it has no need to."""
    if team.scope is not Scope.SYSTEM or team.restarter != "systemd":
        return None
    return f"""\
// Written by `chorus service install`.
polkit.addRule(function(action, subject) {{
    if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "{ACCOUNT}" &&
        /^((specialist@[a-z0-9_-]+|chorus-gateway)\\.(service|socket)|{re.escape(TARGET)})$/.test(action.lookup("unit"))) {{
        return polkit.Result.YES;
    }}
}});
"""


def surroundings(environ: Mapping[str, str], scope: Scope) -> dict[str, str]:
    """The variables of this call that the units must have, too, to be the same team."""
    names = SURROUNDINGS | (USER_SURROUNDINGS if scope is Scope.USER else frozenset())
    return {name: environ[name] for name in sorted(names) if environ.get(name)}


def quoted(words: Sequence[str]) -> str:
    """Words as one line of an Exec key: quoted where they must be; % and $ stand for themselves (systemd.service(5))."""
    return " ".join(_quoted(word.replace("%", "%%").replace("$", "$$")) for word in words)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./$-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _service(team: Team, name: str) -> str:
    text = _packaged(name).replace(PROGRAM, quoted(team.program))
    if team.scope is Scope.USER:
        text = _for_a_user(text)
    elif team.remote:
        text = _without(text, {"IPAddressDeny", "IPAddressAllow"})
    environ = dict(team.environ)
    if team.restarter == "systemd":
        # The folder is the specialists' too, who may outlive the supervisor.
        text = text.replace("RuntimeDirectoryPreserve=restart", "RuntimeDirectoryPreserve=yes")
        environ["CHORUS_RESTARTER"] = "systemd"
        if name == SERVICE:
            # The specialists are not the supervisor's: it ends by TERM, and they stay. `chorus down` is for all of them.
            text = _without(text, {"ExecStop", "ExecStopPost"})
            text = _after_description(text, f"Wants={TARGET}\nAfter={TARGET}\n")
    lines = "".join(f"Environment={_quoted(f'{key}={value}'.replace('%', '%%'))}\n" for key, value in environ.items())
    return text.replace("[Service]\n", f"[Service]\n{lines}", 1)


def _of_gateway(text: str, name: str) -> str:
    """A specialist's unit as the gateway's, which is kept and closed off as they are, and asks the supervisor besides."""
    text = text.replace("chorus specialist %i", GATEWAYS_DESCRIPTION).replace("specialist run %i", "gateway run")
    text = text.replace(systemctl.socket("%i"), systemctl.socket(name)).replace("%i", name)
    # Of the system's team; where a user's is, both know.
    return text.replace(GROUP, f"Environment=CHORUS_SOCKET=/run/chorus/control.sock\n{GROUP}")


def _socket(one: ChildConfig, addresses: Sequence[str]) -> str:
    text = _without(_packaged(systemctl.socket(EXAMPLE)), {"ListenStream"})
    listen = "".join(
        f"ListenStream={f'[{host}]' if ':' in host else host}:{port}\n"
        for host, port in one.places
        if host in addresses
    )
    if isinstance(one, GatewayConfig):
        text = text.replace(f"chorus specialist {EXAMPLE}", GATEWAYS_DESCRIPTION)
    return text.replace("[Socket]\n", f"[Socket]\n{listen}", 1).replace(EXAMPLE, one.name)


def _target(team: Team) -> str:
    wants = "".join(f"Wants={systemctl.service(one.name)}\n" for one in team.children)
    text = _after_description(_packaged(TARGET), wants)
    return text.replace("multi-user.target", "default.target") if team.scope is Scope.USER else text


def _after_description(text: str, lines: str) -> str:
    head, line, rest = text.partition("Description=")
    first, _, others = rest.partition("\n")
    return f"{head}{line}{first}\n{lines}{others}"


def _packaged(name: str) -> str:
    return files("supervisor").joinpath("unitfiles", name).read_text("utf-8")


def _for_a_user(text: str) -> str:
    """Of a system unit what is for a user's: the system's own units are not there to wait for."""
    head, service, rest = re.split(r"(?=^\[Service\]$)|(?=^\[Install\]$)", text, flags=re.MULTILINE)
    keys = {key for key in re.findall(r"^(\w+)=", service, re.MULTILINE) if not USER_KEYS.match(key)}
    head = re.sub(r" (network\.target|ollama\.service)", "", head.replace("After=network", "After= network"))
    head = re.sub(r"^(After|Wants)=(ollama\.service)?\n", "", head, flags=re.MULTILINE)
    return head + _without(service, keys) + rest.replace("multi-user.target", "default.target")


def _without(text: str, keys: set[str]) -> str:
    """Takes keys away, with the comments that stand before them."""
    names = "|".join(sorted(keys))
    return re.sub(rf"(^#.*\n)*^({names})=.*\n", "", text, flags=re.MULTILINE) if keys else text


def _body(text: str) -> str:
    """Without the comment at the top, which is for the reader of the repository, and without gaps."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\A(#.*\n)+", "", text))

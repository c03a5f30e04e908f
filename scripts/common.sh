# Sourced by run and test: a virtual environment beside the project, with exactly what the lock file says.
# usage: prepare LOCK_FILE [LOCK_FILE THAT IT CONTAINS]   does nothing when the environment has the packages already

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $1"
    [ -z "${2:-}" ] || say "  do: $2"
    exit 1
}

# The first Python that is new enough; PYTHON overrides.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer was not found" "apt install python3, or set PYTHON to one"
}

# What an environment must have been made from, to be the one of this lock file.
fingerprint() { cat "$root/$1" "$root/pyproject.toml" | cksum; }

prepare() {
    local python lock
    if [ "$(cat "$venv/.made-from-$1" 2>/dev/null)" = "$(fingerprint "$1")" ]; then
        return
    fi
    python=$(find_python) || exit 1
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        die "this Python cannot make virtual environments" \
            "apt install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "preparing $venv (once)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$root/$1" ||
        die "the packages of $1 could not be installed" \
            "if one had to be compiled: apt install gcc $("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$root"
    for lock in "$@"; do
        fingerprint "$lock" > "$venv/.made-from-$lock"
    done
}

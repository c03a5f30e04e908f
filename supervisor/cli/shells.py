"""The completion scripts without what goes into them: templates for str.format, filled by `scripts.py`."""

from __future__ import annotations

# The state folder as places.py finds it without a service manager; elsewhere the names in the script are offered.
REGISTRY = "${XDG_STATE_HOME:-$HOME/.local/state}/chorus/registry.json"

# Names out of the registry's file, by the shell alone: read, and cut at each "name". Works in bash and in zsh.
NAMES = """\
_chorus_names() {{
  local json= file="{registry}"
  REPLY={roster}
  [ -r "$file" ] || return 0
  IFS= read -r -d '' json < "$file"
  [[ $json == *'"name":"'* ]] && REPLY=
  while [[ $json == *'"name":"'* ]]; do
    json=${{json#*'"name":"'}}
    REPLY=$REPLY" "${{json%%\\"*}}
  done
  return 0
}}
"""

WALK = """\
  for ((i = first; i < last; i++)); do
    word=${{words[i]}}
    if [[ -n $skip ]]; then skip=; [[ $word == '=' ]] && skip=1; continue; fi
    case "$place $word" in
      {valued}) skip=1 ;;
      *' '-*) ;;
      {steps}) place=$place/$word ;;
    esac
  done
"""

BASH = """\
# bash completion for chorus, by `chorus completion bash`
{names}
_chorus() {{
  local place= skip= word i first=1 last=$COMP_CWORD REPLY
  local -a words=("${{COMP_WORDS[@]}}")
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
  COMPREPLY=()
  # bash cuts --option=value into three words
  if [[ $cur == '=' ]]; then cur=; elif [[ $prev == '=' ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
{walk}
  case "$place $prev" in
{values}
  esac
  if [[ $cur == -* ]]; then
    case "$place" in
{options}
    esac
    return 0
  fi
  case "$place" in
{words}
  esac
}}
complete -F _chorus chorus
"""

ZSH = """\
#compdef chorus
# zsh completion for chorus, by `chorus completion zsh`
{names}
_chorus() {{
  emulate -L zsh -o no_nomatch
  local place= skip= word i first=2 last=$CURRENT REPLY
  local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}}
  local -a offered
{walk}
  case "$place $prev" in
{values}
  esac
  if [[ $cur == -* ]]; then
    case "$place" in
{options}
    esac
    return 0
  fi
  case "$place" in
{words}
  esac
}}
if [[ $funcstack[1] == _chorus ]]; then _chorus "$@"; elif (( $+functions[compdef] )); then compdef _chorus chorus; fi
"""

FISH = """\
# fish completion for chorus, by `chorus completion fish`
function __chorus_names
    set -l state $HOME/.local/state
    set -q XDG_STATE_HOME; and set state $XDG_STATE_HOME
    set -l file $state/chorus/registry.json
    set -l found
    test -r $file; and set found (string match -rag '"name":"([^"]+)"' < $file)
    test -n "$found"; and printf '%s\\n' $found; or printf '%s\\n' {roster}
end
function __chorus_place
    set -l place ""
    set -l skip
    for word in (commandline -opc)[2..]
        if test -n "$skip"
            set skip
            continue
        end
        switch "$place $word"
            case {valued}
                set skip 1
            case '* -*'
            case {steps}
                set place $place/$word
        end
    end
    echo "$place"
end
function __chorus_at
    test (__chorus_place) = "$argv[1]"
end
complete -c chorus -f
{lines}
"""

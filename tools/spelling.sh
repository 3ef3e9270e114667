#!/usr/bin/env bash
# spelling.sh PYTHON: codespell on the text that git tracks, and on what the next commit could add. Which files these
# are, git alone knows: where it lists none (no git, no history, a clone of another user), the check is skipped.
set -u -o pipefail
python=$1
list=$(mktemp)
trap 'rm -f "$list"' EXIT
reason=""
if ! said=$(git ls-files -coz --exclude-standard '*.md' '*.py' '*.yml' '*.toml' '*.cff' '*.css' Makefile 2>&1 >"$list"); then
  reason=${said%%$'\n'*}
elif [ ! -s "$list" ]; then
  reason="this folder is ignored by the repository around it"
fi
if [ -n "$reason" ]; then
  echo "SKIPPED: the spelling is not checked, because git lists no files here: $reason"
  exit 0
fi
xargs -0 "$python" -m codespell_lib <"$list"

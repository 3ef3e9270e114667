#!/usr/bin/env bash
# The browser checks need chromium and chromedriver. Install Debian's where that needs no question;
# otherwise fail on CI and say so elsewhere (the tests that need them are then skipped).
set -u
found() {
  { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
    && command -v chromedriver >/dev/null
}
found && exit 0

reason=""
if ! command -v apt-get >/dev/null; then
  reason="no apt-get on this machine"
else
  if [ "$(id -u)" -eq 0 ]; then as_root=(env)
  elif sudo -n true 2>/dev/null; then as_root=(sudo -n env)
  else as_root=(); reason="installing them needs root, or sudo without a password"
  fi
  if [ -z "$reason" ]; then
    echo "installing chromium and chromium-driver"
    log=$(mktemp)
    { "${as_root[@]}" apt-get update && "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends chromium chromium-driver; } >"$log" 2>&1
    found && exit 0
    reason="apt-get did not bring them; its last lines: $(tail -n 3 "$log")"
  fi
fi

if [ "${CI:-}" = true ]; then
  echo "chromium and chromedriver are missing: $reason" >&2
  exit 1
fi
echo "SKIPPED: browser checks will not run, chromium and chromedriver are missing: $reason"

#!/usr/bin/env bash
# stage.sh NAME COMMAND...: run the command, end with a line that says how it went and how long it took.
set -u
name=$1
shift
echo "==> $name"
SECONDS=0
"$@"
code=$?
if [ "$code" -eq 0 ]; then state=ok; else state="FAILED (exit $code)"; fi
printf '<== %s: %s, %d min %02d s\n' "$name" "$state" $((SECONDS / 60)) $((SECONDS % 60))
exit "$code"

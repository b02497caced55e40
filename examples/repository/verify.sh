#!/bin/sh
# Checks a repository against its newest index: verify.sh REPOSITORY
#
# What sha256sum says of each file is the log of the task. It shares the
# repository: files may come in meanwhile, but no new index.
set -eu
working_directory=$PWD
cd "$1"
entries=$(wc -l <index)
status=0
# sha256sum takes an empty list for a mistake.
if [ "$entries" -gt 0 ]; then
    sha256sum -c index >"$working_directory/said" 2>&1 || status=1
else
    : >"$working_directory/said"
fi
cat "$working_directory/said" >&2
ok=$(grep -c ': OK$' "$working_directory/said") || :
printf '{"entries": %d, "ok": %d}\n' "$entries" "$ok"
exit "$status"

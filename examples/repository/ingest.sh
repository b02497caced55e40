#!/bin/sh
# Takes one file into a repository: ingest.sh REPOSITORY FILE NAME SHARD
#
# The content goes to store/, under its checksum, with a list of its members if
# it is an archive; files/NAME is a link to it; shards/SHARD gets a line. The
# task has the shard for itself: two at once would lose each other's line.
set -eu
repository=$1 file=$2 name=$3 shard=$4
mkdir -p "$repository/incoming"
cd "$repository"

# Copy first, so that what is hashed is what is stored. If the task is killed,
# it leaves a file in incoming/ and nothing half done elsewhere.
new=incoming/$MILLHAND_TASK_ID
cp -- "$file" "$new"
sum=$(sha256sum <"$new")
sum=${sum%% *}
size=$(wc -c <"$new")
# Not every file is an archive.
tar -tf "$new" >"$new.members" 2>/dev/null || :>"$new.members"
members=$(wc -l <"$new.members")

# mv replaces in one step: whoever stores the same content at the same time
# does no harm.
stored=store/${sum%"${sum#??}"}/$sum
mkdir -p "${stored%/*}" "files/$(dirname -- "$name")" shards
mv -f "$new.members" "$stored.members"
mv -f "$new" "$stored"
ln -f "$stored" "files/$name"

# Read, change, write: right only if nobody else does.
{
    [ ! -e "shards/$shard" ] || cat "shards/$shard"
    printf '%s  files/%s\n' "$sum" "$name"
} >"$new"
mv -f "$new" "shards/$shard"

printf '{"sha256": "%s", "size": %d, "members": %d}\n' "$sum" "$size" "$members"

#!/bin/sh
# Installs what is missing with the system's package manager, or says what to install:
#   install-servers.sh servers   the Postgres and Redis servers
#   install-servers.sh all       and, for tests, PgBouncer and a library that fakes a
#                                server's clock; without these only their tests fail
# On a terminal it asks first; without one it goes ahead where it may. It upgrades nothing.
set -eu
wanted=${1:-all}

has_postgres() {
    for folder in $(echo "$PATH" | tr ':' ' ') /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /usr/local/pgsql/bin; do
        # A link may stand alone in its folder.
        program=$(readlink -f "$folder/postgres" 2>/dev/null) || continue
        [ -x "$program" ] && [ -x "${program%/*}/initdb" ] && return
    done
    return 1
}

has_redis() {
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null
}

has_faketime() {
    for folder in /usr/lib /usr/lib64 /usr/local/lib /usr/lib/*; do
        [ -e "$folder/faketime/libfaketime.so.1" ] && return
    done
    return 1
}

has_pgbouncer() {
    [ -x /usr/sbin/pgbouncer ] || [ -x /usr/bin/pgbouncer ]
}

has_all() {
    has_postgres && has_redis || return 1
    if [ "$wanted" = all ]; then
        has_faketime && has_pgbouncer
    fi
}

packages() {
    has_postgres || printf '%s ' "$1"
    has_redis || printf '%s ' "$2"
    [ "$wanted" = all ] || return 0
    has_faketime || printf '%s ' "$3"
    has_pgbouncer || printf '%s ' "$4"
}

if has_all; then
    exit
fi
# One at a time; the next one may find nothing left to do.
if command -v flock >/dev/null; then
    exec 9<"$0"
    flock 9
    if has_all; then
        exit
    fi
fi

manager=
for candidate in apt-get dnf yum zypper pacman apk; do
    if command -v "$candidate" >/dev/null; then
        manager=$candidate
        break
    fi
done
case $manager in
apt-get) missing=$(packages postgresql redis-server faketime pgbouncer) ;;
dnf | yum) missing=$(packages "postgresql-server postgresql-contrib" redis libfaketime pgbouncer) ;;
zypper) missing=$(packages "postgresql-server postgresql-contrib" redis libfaketime pgbouncer) ;;
pacman) missing=$(packages postgresql valkey libfaketime pgbouncer) ;;
apk) missing=$(packages "postgresql postgresql-contrib" redis libfaketime pgbouncer) ;;
*) missing=$(packages "the Postgres server (initdb, postgres)" "the Redis server (redis-server)" libfaketime pgbouncer) ;;
esac

missing=${missing% }

give_up() {
    echo "please install: $missing" >&2
    has_postgres && has_redis
    exit
}

has_terminal=
if [ -t 0 ] && [ -t 2 ]; then
    has_terminal=1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=env
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n env'
elif command -v sudo >/dev/null && [ "$has_terminal" ]; then
    as_root='sudo env'
else
    manager=
fi
[ "$manager" ] || give_up
if [ "$has_terminal" ]; then
    printf 'missing: %s\ninstall that with %s? (Some systems also start a server that they install.) [y/N] ' \
        "$missing" "$manager" >&2
    read -r answer
    case $answer in
    y | Y | yes) ;;
    *) give_up ;;
    esac
fi
echo "installing: $missing" >&2
# shellcheck disable=SC2086 # lists of words
case $manager in
apt-get)
    # Somebody else may be installing too: wait.
    apt="$as_root DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
    $apt update >&2 || :
    $apt install -y --no-upgrade --no-install-recommends $missing >&2
    ;;
dnf | yum) $as_root $manager install -y -q $missing >&2 ;;
zypper) $as_root zypper --non-interactive --quiet install $missing >&2 ;;
pacman) $as_root pacman -S --noconfirm --needed $missing >&2 ;;
apk) $as_root apk add --quiet $missing >&2 ;;
esac || :

if ! has_all; then
    echo "could not install $missing; please install it and try again" >&2
    has_postgres && has_redis
fi

#!/bin/sh
# Installs the Postgres and Redis servers, and for tests PgBouncer and a library that
# fakes a server's clock, with the system's package manager, where they are missing and
# we may; says what to install otherwise. Without the last two only their tests fail.
set -eu

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
    has_postgres && has_redis && has_faketime && has_pgbouncer
}

packages() {
    has_postgres || printf '%s ' "$1"
    has_redis || printf '%s ' "$2"
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
if [ "$(id -u)" = 0 ]; then
    as_root=env
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n env'
else
    manager=
fi

if [ -z "$manager" ]; then
    echo "please install: $missing" >&2
    has_postgres && has_redis
    exit
fi
echo "installing: $missing" >&2
# shellcheck disable=SC2086 # lists of words
case $manager in
apt-get)
    # Somebody else may be installing too: wait.
    apt="$as_root DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
    $apt update >&2 || :
    $apt install -y --no-install-recommends $missing >&2
    ;;
dnf | yum) $as_root $manager install -y -q $missing >&2 ;;
zypper) $as_root zypper --non-interactive --quiet install $missing >&2 ;;
pacman) $as_root pacman -Sy --noconfirm --needed $missing >&2 ;;
apk) $as_root apk add --quiet $missing >&2 ;;
esac || :

if ! has_all; then
    echo "could not install $missing; please install it and try again" >&2
    has_postgres && has_redis
fi

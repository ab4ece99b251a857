# Starts a container's process as a container runtime does: a root of its own that cannot be written, the volumes, the
# user, no capabilities. Runs in the pod's network and host name, and in a mount namespace of its own.
#   enter.sh ROOT PROGRAM HOSTS UID GID FSGROUP [SOURCE TARGET]… -- ARGUMENTS…
set -eu
root=$1 program=$2 hosts=$3 uid=$4 gid=$5 fs_group=$6
shift 6
mount -t tmpfs -o mode=0755 flotilla-root "$root"
mkdir -p "$root/etc/ssl/certs" "$root/proc" "$root/dev"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# What the image has in itself, because its binary is static.
for path in /usr /lib /lib64; do
    if [ -L "$path" ]; then
        cp -P "$path" "$root/"
    elif [ -d "$path" ]; then
        mkdir "$root$path"
        mount --bind -o ro "$path" "$root$path"
    fi
done
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
echo 'hosts: files' >"$root/etc/nsswitch.conf"
touch "$root/flotilla" "$root/etc/hosts"
mount --bind -o ro "$program" "$root/flotilla"
mount --bind -o ro "$hosts" "$root/etc/hosts"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
mount -o remount,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid "$uid" --regid "$gid" --groups "$fs_group" --no-new-privs \
    --inh-caps=-all --bounding-set=-all --pdeathsig KILL /flotilla "$@"

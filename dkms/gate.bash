# shellcheck shell=bash
#
# Sourced by dkms.conf.  Decides whether the module is for a kernel at all, so that one that
# it cannot be built for is skipped (DKMS: status 77) and no installation fails over it.
#
# What DKMS 3.0.10 of Debian 12 makes of a failing build: its common.postinst and its hook in
# /etc/kernel end with an error, and dpkg leaves cplayground-dkms, or the kernel, or the
# kernel's headers half-configured.  (With 2.8.4 of Debian 11 its common.postinst alone; there
# "skipped" is status 9.)  A skipped module gets through common.postinst, but
# "dkms autoinstall" counts it among the failed ones all the same; it passes over a module
# without AUTOINSTALL.  So both are set here.
#
# The judgement is the build itself, tried in a directory of its own: it takes seconds, and no
# list of versions, options and probes knows better.

cplayground_skip() {
    echo "cplayground: skipped for $1: $2" >&2
    BUILD_EXCLUSIVE_KERNEL="no kernel that the module cannot be built for"
    AUTOINSTALL=""
}

cplayground_gate() {
    local target=${kernelver:-} tree=${kernel_source_dir:-} option work log reason magic

    # DKMS reads this file for many things; only these lead to a build.  DKMS 2.8 of Debian 11
    # collects several actions in one variable, and has the one that it does in another.
    case ${action_to_run:-${action:-}} in
        build | install) ;;
        autoinstall)
            # While DKMS chooses what to install, its read_conf() shadows the kernel with that
            # of an earlier build, or with nothing.  Unset in a function below, a variable of
            # bash shows what it shadowed.
            work=$(unset -v kernelver && echo "${kernelver[0]:-}")
            target=${work:-$target}
            tree=/lib/modules/$target/build
            ;;
        *) return ;;
    esac

    # Without headers DKMS has its own words.
    [[ -n $target && -d $tree/include ]] || return

    # DKMS would move a module that belongs to a package out of dpkg's hands.
    if [[ -e ${tree%/build}/extra/cplayground.ko ]]; then
        cplayground_skip "$target" "it has the module already, from cplayground-modules-$target"
        return
    fi

    for option in $BUILD_EXCLUSIVE_CONFIG; do
        if ! grep -qs "^$option=y" "$tree/.config" "$tree/include/config/auto.conf"; then
            cplayground_skip "$target" "it is built without $option"
            return
        fi
    done

    if ! work=$(mktemp -d); then
        cplayground_skip "$target" "there is no room for a trial build"
        return
    fi
    log=/var/log/cplayground-dkms-$target.log
    cp -R "${BASH_SOURCE[0]%/*}/." "$work"
    if ! make -C "$work" KDIR="$tree" KERNELRELEASE="$target" > "$log" 2>&1; then
        # The module's own verdict if it has one, else the first error.
        reason=$(grep -m 1 '^cplayground: ' "$log" || grep -m 1 -i 'error' "$log")
        reason=${reason#cplayground: }
        cplayground_skip "$target" "${reason:-it does not build} (all of it: $log)"
    else
        magic=$(modinfo -F vermagic "$work/cplayground.ko")
        if [[ ${magic%% *} != "$target" ]]; then
            cplayground_skip "$target" "its headers build modules for ${magic%% *}"
        else
            rm -f "$log"
        fi
    fi
    rm -rf "$work"
}

cplayground_gate
unset -f cplayground_gate cplayground_skip

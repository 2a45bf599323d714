# shellcheck shell=bash
#
# Sourced by dkms.conf.  Decides whether the module is for a kernel at all.  A kernel that it
# cannot be built for is skipped (DKMS: status 77), so no installation fails over it.
#
# DKMS 3.0.10 of Debian 12 ends its common.postinst and its hook in /etc/kernel with an error
# when a build fails; dpkg then leaves cplayground-dkms, the kernel or its headers
# half-configured.  (2.8.4 of Debian 11 ends only its common.postinst so; there "skipped" is
# status 9.)  A skipped module gets through common.postinst, but "dkms autoinstall" counts it
# among the failed ones.  It passes over a module without AUTOINSTALL, so both are set here.
#
# The judgement is the build itself, tried in a directory of its own: it takes seconds, and no
# list of versions, options and probes knows better.  Only a verdict on the kernel skips it.  A
# trial that fails for any other reason (no space, no compiler, damaged headers) decides nothing:
# DKMS then builds without a verdict, and fails when the machine cannot build.

cplayground_skip() {
    echo "cplayground: skipped for $1: $2" >&2
    # shellcheck disable=SC2034 # DKMS reads both
    BUILD_EXCLUSIVE_KERNEL="no kernel that the module cannot be built for" AUTOINSTALL=""
}

cplayground_unjudged() {
    echo "cplayground: no verdict on $1: $2" >&2
    echo "cplayground: the machine or the headers are at fault; DKMS builds without a verdict" >&2
}

# Print why a build failed, and succeed only if that is a verdict on the kernel: probe.sh's own, or
# an error of the compiler or modpost.  A compiler that is killed or cannot write says
# "fatal error" or "internal compiler error".  The loop needs no file and no other program.
cplayground_reason() {
    local - IFS=$'\n' line last="" fault="" verdict=""
    set -f
    for line in $1; do
        case $line in
            'cplayground: error: this kernel '*)
                echo "${line#cplayground: error: }"
                return
                ;;
            'cplayground: error: '*)
                echo "${fault:-$line}"
                return 1
                ;;
            'ERROR: modpost: '*)
                # Without the kernel's list of symbols, modpost misses each of them.
                [[ ! -s $2/Module.symvers ]] || verdict=${verdict:-$line}
                ;;
            *'*** '*) fault=${fault:-$last} ;;
        esac
        [[ ! $line =~ \.[ch]:[0-9]+:[0-9]+:\ error:\  ]] || verdict=${verdict:-$line}
        [[ ! $line =~ [Ee]rror|ERROR|'not found' ]] || fault=${fault:-$line}
        last=$line
    done
    echo "${verdict:-${fault:-${last:-make failed and gave no reason}}}"
    [[ -n $verdict ]]
}

# Build in a directory of its own; descriptor 9 is the lock on it.
cplayground_trial() {
    local target=$1 tree=$2 work=$3 log=/var/log/cplayground-dkms-$1.log said reason magic

    if ! flock -w 900 9; then
        cplayground_unjudged "$target" "another trial build does not end"
        return
    fi
    # A trial that was killed has left its directory.
    if ! said=$({ rm -rf "$work" && mkdir "$work" && cp -R "${BASH_SOURCE[0]%/*}/." "$work"; } 2>&1)
    then
        cplayground_unjudged "$target" "${said%%$'\n'*}"
    # The output is kept in memory, so that a full disk does not cut it short.
    elif ! said=$(eval "${cplayground_env:?}" TMPDIR="$work" \
        make -C "$work" KDIR="$tree" KERNELRELEASE="$target" 2>&1); then
        if reason=$(cplayground_reason "$said" "$tree"); then
            echo "$said" > "$log" && reason+=" (all of it: $log)"
            cplayground_skip "$target" "$reason"
        else
            cplayground_unjudged "$target" "$reason"
        fi
    elif ! magic=$(modinfo -F vermagic "$work/cplayground.ko"); then
        cplayground_unjudged "$target" "modinfo cannot read the module that was built"
    elif [[ ${magic%% *} != "$target" ]]; then
        cplayground_skip "$target" "its headers build modules for ${magic%% *}"
    else
        rm -f "$log"
    fi
    rm -rf "$work"
}

cplayground_gate() {
    local target=${kernelver:-} tree=${kernel_source_dir:-} option options
    local cache=/var/cache/cplayground-dkms

    # DKMS reads this file for many things; only these lead to a build.  DKMS 2.8 of Debian 11
    # collects several actions in one variable, and has the one that it does in another.
    case ${action_to_run:-${action:-}} in
        build | install) ;;
        autoinstall)
            # While DKMS chooses what to install, its read_conf() shadows the kernel with that
            # of an earlier build, or with nothing.  Unset in a function below, a variable of
            # bash shows what it shadowed.
            option=$(unset -v kernelver && echo "${kernelver[0]:-}")
            target=${option:-$target}
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

    options=$(cat "$tree/include/config/auto.conf" "$tree/.config" 2> /dev/null)
    if [[ -z $options ]]; then
        cplayground_unjudged "$target" "its headers have no configuration"
        return
    fi
    for option in $BUILD_EXCLUSIVE_CONFIG; do
        if [[ $'\n'$options$'\n' != *$'\n'"$option=y"$'\n'* ]]; then
            cplayground_skip "$target" "it is built without $option"
            return
        fi
    done

    if mkdir -p "$cache" && : > "$cache/lock"; then
        cplayground_trial "$target" "$tree" "$cache/trial" 9> "$cache/lock"
    else
        cplayground_unjudged "$target" "$cache cannot be written to"
    fi
}

cplayground_gate
unset -f cplayground_gate cplayground_trial cplayground_reason cplayground_unjudged cplayground_skip
unset -v cplayground_env

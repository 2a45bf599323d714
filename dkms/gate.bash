# shellcheck shell=bash
#
# Sourced by dkms.conf.  Decides whether the module supports a kernel.  An unsupported kernel is
# skipped (DKMS: status 77), so that no installation fails.
#
# When a build fails, common.postinst and the hook in /etc/kernel of DKMS 3.0.10 (Debian 12) end
# with an error.  dpkg then leaves cplayground-dkms, the kernel or its headers half-configured.
# With 2.8.4 (Debian 11) only common.postinst ends so, and "skipped" is status 9.
# common.postinst accepts a skipped module, but "dkms autoinstall" counts it as failed.  It
# ignores a module without AUTOINSTALL, so both are set here.
#
# The gate decides by a trial build in a separate directory.  That takes seconds, and is more
# reliable than a list of versions, options and probes.  A kernel is skipped only by a verdict on
# the kernel.  A trial that fails for another reason (no space, no compiler, damaged headers)
# gives no verdict.  DKMS then builds the module anyway, and fails if the machine cannot build.

cplayground_skip() {
    echo "cplayground: skipped for $1: $2" >&2
    # shellcheck disable=SC2034 # DKMS reads both
    BUILD_EXCLUSIVE_KERNEL="no kernel that the module cannot be built for" AUTOINSTALL=""
}

cplayground_unjudged() {
    echo "cplayground: no verdict on $1: $2" >&2
    echo "cplayground: the machine or the headers are at fault; DKMS builds without a verdict" >&2
}

# Print why a build failed; succeed only if that is a verdict on the kernel.  A verdict is that of
# probe.sh, or an error of the compiler or of modpost.  A compiler that was killed or cannot write
# prints "fatal error" or "internal compiler error".  The loop needs no file and no other program.
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
                # Without Module.symvers, modpost finds no symbol at all.
                [[ ! -s $2/Module.symvers ]] || verdict=${verdict:-$line}
                ;;
            *'*** '*) fault=${fault:-$last} ;;
        esac
        [[ ! $line =~ \.[ch]:[0-9]+:[0-9]+:\ error:\  ]] || verdict=${verdict:-$line}
        [[ ! $line =~ [Ee]rror|ERROR|'not found' ]] || fault=${fault:-$line}
        last=$line
    done
    echo "${verdict:-${fault:-${last:-make failed without a message}}}"
    [[ -n $verdict ]]
}

# Build in the directory $work; descriptor 9 is the lock on it.
cplayground_trial() {
    local target=$1 tree=$2 work=$3 log=/var/log/cplayground-dkms-$1.log said reason magic

    if ! flock -w 900 9; then
        cplayground_unjudged "$target" "another trial build has not ended within 15 minutes"
        return
    fi
    # A killed trial leaves its directory behind.
    if ! said=$({ rm -rf "$work" && mkdir "$work" && cp -R "${BASH_SOURCE[0]%/*}/." "$work"; } 2>&1)
    then
        cplayground_unjudged "$target" "${said%%$'\n'*}"
    # The output is kept in memory, so that a full disk does not cut it short.
    elif ! said=$(eval "${cplayground_env:?}" TMPDIR="$work" \
        make -C "$work" KDIR="$tree" KERNELRELEASE="$target" 2>&1); then
        if reason=$(cplayground_reason "$said" "$tree"); then
            echo "$said" > "$log" && reason+=" (log: $log)"
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

    # DKMS reads this file for many actions; only these lead to a build.  DKMS 2.8 of Debian 11
    # collects several actions in one variable, and has the current one in another.
    case ${action_to_run:-${action:-}} in
        build | install) ;;
        autoinstall)
            # While DKMS chooses modules to install, a local variable in its read_conf() hides
            # the kernel's name.  It is empty, or the kernel of an earlier build.  In a nested
            # function, bash's "unset -v" removes it and shows the hidden variable.
            option=$(unset -v kernelver && echo "${kernelver[0]:-}")
            target=${option:-$target}
            tree=/lib/modules/$target/build
            ;;
        *) return ;;
    esac

    # DKMS itself reports missing headers.
    [[ -n $target && -d $tree/include ]] || return

    # DKMS would move away a module that belongs to a package.
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

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Find out what the target kernel offers, and say it in a header.  Called by Kbuild:
#
#   probe.sh <header> <Module.symvers or ""> <version> <compiler and its flags...>
#
# Features are tried by compiling, never taken from a version number: distributions
# backport.  What the compiler said is kept beside the header.
#
# "cplayground: error: this kernel ..." is the module's verdict on a kernel: the gate of DKMS
# skips a kernel for it.  Every other error is of the headers, the compiler or the machine.

set -eu

header=$1 symvers=$2 version=$3
shift 3
here=$(dirname "$0")/probes
log=${header%.h}.log
: > "$log"

# Only the use of an interface that is missing, or differs, is an error.  The compiler also
# warns of the kernel's own headers: with W=1, of those of 5.10 without NUMA.
# The words are caught without a file: on a full disk the compiler must not seem to fail.
compiles() {
	name=$1
	shift
	status=0
	said=$(LC_ALL=C "$@" -Wno-error -Werror=implicit-function-declaration \
		-Werror=incompatible-pointer-types -Werror=int-conversion \
		-DKBUILD_MODNAME='"probe"' -DKBUILD_BASENAME='"probe"' \
		-fsyntax-only "$here/$name.c" 2>&1) || status=$?
	printf '== %s\n%s\n' "$name" "$said" >> "$log"
	return $status
}

exports() {
	[ -n "$symvers" ] && cut -f 2 "$symvers" | grep -qx "$1"
}

# A compiler that was killed, or found no memory, has not read the probe to its end.
lacks() {
	printf '%s\n' "$said" >&2
	if printf '%s\n' "$said" |
		grep -Eq '\.[ch]:[0-9]+:([0-9]+:)? (error: |fatal error: [^ ]+\.h: No such file)'; then
		echo "cplayground: error: this kernel $*" >&2
	else
		echo "cplayground: error: the compiler failed on probes/$name.c and names no fault in it" >&2
	fi
	exit 1
}

if ! compiles sanity "$@"; then
	printf '%s\n' "$said" >&2
	echo "cplayground: error: the kernel headers are not usable: nothing compiles against them" >&2
	exit 1
fi
compiles required "$@" ||
	lacks "lacks an interface that the module uses, shown above:" \
		"it is older than Linux 5.10, or newer than version $version of the module knows"
{
	echo "/* Made by probe.sh for one kernel; see ${log##*/}. */"
	echo "#define CPG_VERSION \"$version\""
	if exports get_files_struct && exports put_files_struct; then
		compiles files_struct "$@" || lacks "exports get_files_struct, its headers lack it"
		echo "#define CPG_HAVE_FILES_STRUCT 1"
	fi
} > "$header.tmp"
mv "$header.tmp" "$header"

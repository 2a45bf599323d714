#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Find the features of the target kernel, and write them to a header.  Called by Kbuild:
#
#   probe.sh <header> <Module.symvers or ""> <version> <compiler and its flags...>
#
# Features are found by compiling, never by a version number, because distributions backport.
# The compiler's messages are kept in a log next to the header.
#
# "cplayground: error: this kernel ..." means that the module does not support the kernel;
# the gate of DKMS then skips it.  Every other error is in the headers, the compiler or the
# machine.

set -eu

header=$1 symvers=$2 version=$3
shift 3
here=$(dirname "$0")/probes
log=${header%.h}.log
: > "$log"

# Only the use of a missing or different interface is an error.  The compiler also warns about
# the kernel's own headers: with W=1, about those of 5.10 without NUMA.
# The messages do not go to a file: on a full disk the compiler would seem to fail.
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

# A compiler that was killed or ran out of memory proves nothing about the kernel.
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

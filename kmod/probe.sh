#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Find out what the target kernel offers, and say it in a header.  Called by Kbuild:
#
#   probe.sh <header> <Module.symvers or ""> <version> <compiler and its flags...>
#
# Features are tried by compiling, never taken from a version number: distributions
# backport.  What the compiler said is kept beside the header.

set -eu

header=$1 symvers=$2 version=$3
shift 3
here=$(dirname "$0")/probes
log=${header%.h}.log
: > "$log"

# Only the use of an interface that is missing, or differs, is an error.  The compiler also
# warns of the kernel's own headers: with W=1, of those of 5.10 without NUMA.
compiles() {
	name=$1
	shift
	echo "== $name" >> "$log"
	"$@" -Wno-error -Werror=implicit-function-declaration -Werror=incompatible-pointer-types \
		-Werror=int-conversion -DKBUILD_MODNAME='"probe"' -DKBUILD_BASENAME='"probe"' \
		-fsyntax-only "$here/$name.c" >> "$log" 2>&1
}

exports() {
	[ -n "$symvers" ] && cut -f 2 "$symvers" | grep -qx "$1"
}

if ! compiles sanity "$@"; then
	cat "$log" >&2
	echo "cplayground: error: the kernel headers are not usable: nothing compiles against them" >&2
	exit 1
fi
if ! compiles required "$@"; then
	cat "$log" >&2
	echo "cplayground: error: this kernel lacks an interface that the module uses, shown above:" \
		"it is older than Linux 5.10, or newer than version $version of the module knows" >&2
	exit 1
fi
{
	echo "/* Made by probe.sh for one kernel; see ${log##*/}. */"
	echo "#define CPG_VERSION \"$version\""
	if exports get_files_struct && exports put_files_struct; then
		if ! compiles files_struct "$@"; then
			cat "$log" >&2
			echo "cplayground: error: the kernel exports get_files_struct, its headers lack it" >&2
			exit 1
		fi
		echo "#define CPG_HAVE_FILES_STRUCT 1"
	fi
} > "$header.tmp"
mv "$header.tmp" "$header"

"""See what /proc/cplayground shows: containers' processes and their open files."""

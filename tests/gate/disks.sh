#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# As the init of a guest: put /boot on each kind of disk, install GRUB there as an administrator
# does, and print what the guard says.  /etc/disks has a line for each virtio disk after the first:
# its kind.  The kind md takes two lines.  After "ext4 cut" and "xfs cut" the guard's commands run,
# and each line "@cut NAME" asks the host for a copy of the disk as it is at that instant.
#
# tests/gate/test_grub_disks.py starts it and reads the console.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
exec </dev/null 2>&1
new=$(cat /new/release)

say() { printf '@%s\n' "$*"; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
# As on a machine that systemd has started.
mkdir -p /run/systemd/system
/lib/systemd/systemd-udevd --daemon
modprobe -a dm-mod raid1 btrfs xfs
udevadm trigger --action=add --subsystem-match=block
udevadm settle

# Make a file system of the kind $1 on the disks $2..., which have one partition each, and set
# $device to it.
make() {
	kind=$1
	shift
	case $kind in
	ext4) device=${1}1 && mkfs.ext4 -q -O ^metadata_csum_seed "$device" ;;
	xfs) device=${1}1 && mkfs.xfs -q -f "$device" ;;
	btrfs) device=${1}1 && mkfs.btrfs -q -f "$device" ;;
	lvm)
		device=/dev/vg/boot
		vgcreate -q vg "${1}1" && lvcreate -q -y -W n -l 100%FREE -n boot vg &&
			mkfs.ext4 -q -O ^metadata_csum_seed "$device"
		;;
	md)
		device=/dev/md0
		mdadm --quiet --create "$device" --run --level=1 --raid-devices=2 --assume-clean \
			--metadata=1.2 "${1}1" "${2}1" && mkfs.ext4 -q -O ^metadata_csum_seed "$device"
		;;
	esac || say "failed: no $kind"
	udevadm settle
}

# Give the host the time to copy the disk; the kernel's own writing comes later.
copy() {
	say "cut $1"
	sleep 1
}

# The guard's commands, each as a machine runs it that was up for long.
cuts() {
	update-grub || say 'failed: update-grub'
	umount /boot
	mount "$device" /boot
	cplayground-guard arm "$new"
	copy "$kind armed"
	umount /boot
	mount "$device" /boot
	# As GRUB leaves it when it has started the trial.
	grub-editenv /boot/grub/grubenv set next_entry= guard_tried=1
	umount /boot
	mount "$device" /boot
	mkdir -p /tmp/front
	printf '#!/bin/sh\necho %s\n' "$new" >/tmp/front/uname
	chmod +x /tmp/front/uname
	echo cplayground_guard=trial >/tmp/cmdline
	mount --bind /tmp/cmdline /proc/cmdline
	# A kernel that was armed in this boot has not run.
	echo another >/tmp/boot_id
	mount --bind /tmp/boot_id /proc/sys/kernel/random/boot_id
	GUARD_PATH=/tmp/front cplayground-guard good
	copy "$kind good"
	umount /proc/cmdline /proc/sys/kernel/random/boot_id
	cplayground-guard rollback
	copy "$kind back"
}

letters='b c d e f g h i j k'
next() {
	disk=/dev/vd${letters%% *}
	letters=${letters#* }
}

cp -a /boot /tmp/boot
say "up $(cut -d' ' -f1 /proc/uptime)"
while read -r kind and; do
	say "begin $kind $and"
	next
	disks=$disk
	if [ "$kind" = md ]; then
		next
		disks="$disks $disk"
	fi
	# shellcheck disable=SC2086  # one or two
	make "$kind" $disks
	mount "$device" /boot || say "failed: $device is not mounted"
	cp -a /tmp/boot/. /boot/
	for one in $disks; do
		grub-install --target=i386-pc "$one" || say "failed: grub-install $one"
	done
	grub-editenv /boot/grub/grubenv create
	update-grub || say 'failed: update-grub'
	rm -rf /var/lib/cplayground-guard
	cplayground-guard prepare
	say "status"
	cplayground-guard status
	say "exit $?"
	if [ "$and" ]; then
		copy "$kind prepared"
		cp -a /new/boot/. /boot/
		cuts
	else
		cp -a /new/boot/. /boot/
		update-grub || say 'failed: update-grub'
		cplayground-guard arm "$new"
		say "arm $?"
	fi
	umount /boot
	say "end $(cut -d' ' -f1 /proc/uptime)"
done </etc/disks
say "done"
sync
echo o >/proc/sysrq-trigger
sleep 60

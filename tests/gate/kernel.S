# SPDX-License-Identifier: GPL-2.0-or-later
#
# A kernel that only says that it was started: its name, its command line, and its initrd's text.
#
# It obeys the 32-bit boot protocol (Documentation/arch/x86/boot.rst), so GRUB's own "linux" and
# "initrd" load it.  tests/gate/alone.py appends the name.  QEMU's isa-debug-exit ends the machine.

	.set	serial, 0x3f8		# the port of ttyS0
	.set	qemu, 0x501		# the port of isa-debug-exit
	.set	started, 0x10		# QEMU ends with twice that, plus 1
	.set	room, 0x10000		# for the name and the stack

	.org	0x1f1
	.byte	1			# setup_sects: what follows sector 0 until the code
	.org	0x1fe
	.word	0xaa55			# boot_flag
	.org	0x202
	.ascii	"HdrS"
	.word	0x020c			# version
	.org	0x211
	.byte	1			# loadflags: LOADED_HIGH
	.org	0x214
	.long	0x100000		# code32_start
	.org	0x22c
	.long	0x7fffffff		# initrd_addr_max
	.long	0x1000			# kernel_alignment
	.byte	1, 12			# relocatable_kernel, min_alignment
	.org	0x238
	.long	2047			# cmdline_size
	.org	0x258
	.quad	0x100000		# pref_address
	.long	room			# init_size

	.org	0x400
code:	mov	0x214(%esi), %ebp	# boot_params is in %esi, code32_start says where we are
	lea	room(%ebp), %esp
	cld

	lea	kernel - code(%ebp), %edi
	call	print
	lea	name - code(%ebp), %edi
	call	print

	lea	cmdline - code(%ebp), %edi
	call	print
	mov	0x228(%esi), %edi	# cmd_line_ptr
	call	print

	lea	initrd - code(%ebp), %edi
	call	print
	mov	0x218(%esi), %edi	# ramdisk_image
	mov	0x21c(%esi), %ecx	# ramdisk_size
	jecxz	end
	lea	(%edi,%ecx), %ecx	# its last byte is a NUL
	movb	$0, -1(%ecx)
	call	print

end:	lea	last - code(%ebp), %edi
	call	print
	mov	$qemu, %dx
	mov	$started, %al
	out	%al, %dx
	hlt

# Print the string at %edi.
print:	mov	$serial + 5, %dx	# the line's status
0:	in	%dx, %al
	test	$0x20, %al		# there is room for a byte
	jz	0b
	mov	(%edi), %al
	test	%al, %al
	jz	1f
	mov	$serial, %dx
	out	%al, %dx
	inc	%edi
	jmp	print
1:	ret

kernel:	.asciz	"\r\n@kernel "
cmdline: .asciz	"\r\n@cmdline "
initrd:	.asciz	"\r\n@initrd "
last:	.asciz	"\r\n@end\r\n"
name:

// SPDX-License-Identifier: GPL-2.0
/*
 * A TCG plugin for QEMU that counts atomic read-modify-writes, which an
 * instruction count (-icount) does not tell from other instructions:
 *
 *	x86	a LOCK prefix, or XCHG with memory
 *	arm64	the atomics of LSE, and each store-exclusive
 *
 * A benchmark marks the times it takes, and what it reports, by NOPs that nothing
 * else has (bench.h). For each report a line is written: the count between
 * the two marks of time before it, as the line that the benchmark prints says of
 * its instructions. For a guest of one CPU, on which x86 needs 'noreplace-smp'.
 *
 *	gcc -shared -fPIC -O2 -o locked.so locked_plugin.c
 *	qemu-system-x86_64 ... -plugin ./locked.so,out=FILE
 *
 * Debian 12 ships no qemu-plugin.h. What is used of it is declared here, as it
 * is in version 1 of the API (QEMU 4.2 to 8.2); another QEMU refuses to load this.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

typedef struct {
	const char *target_name;
	struct {
		int min;
		int cur;
	} version;
	bool system_emulation;
	union {
		struct {
			int smp_vcpus;
			int max_vcpus;
		} system;
	};
} qemu_info_t;

enum { QEMU_PLUGIN_CB_NO_REGS };
enum { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
		void (*cb)(unsigned int cpu, void *data), int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn,
		int op, void *ptr, uint64_t imm);

int qemu_plugin_version = 1;

static uint64_t count, last, previous;
static bool arm64;
static FILE *out;

/* the opcode behind the prefixes of an x86 instruction, and whether LOCK is one */
static const uint8_t *x86_opcode(const uint8_t *insn, const uint8_t *end, bool *lock)
{
	for (; insn < end && strchr("\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x66\x67", *insn) && *insn; insn++)
		*lock |= *insn == 0xf0;
	if (insn < end && (*insn & 0xf0) == 0x40)	/* REX */
		insn++;
	return insn;
}

static bool x86_locked(const uint8_t *insn, size_t size)
{
	const uint8_t *end = insn + size;
	bool lock = false;

	insn = x86_opcode(insn, end, &lock);
	/* XCHG; the second byte says whether it is with memory */
	return lock || (insn + 1 < end && (*insn | 1) == 0x87 && insn[1] < 0xc0);
}

static bool arm64_locked(uint32_t insn)
{
	return (insn & 0x3b200c00) == 0x38200000 ||	/* LDADD ... SWP */
	       (insn & 0x3fa07c00) == 0x08a07c00 ||	/* CAS */
	       (insn & 0xbfa07c00) == 0x08207c00 ||	/* CASP */
	       (insn & 0x3fe00000) == 0x08000000 ||	/* STXR */
	       (insn & 0xbfe00000) == 0x88200000;	/* STXP */
}

/* 1 for a mark of time, 2 for a report, else 0; as bench.h makes them */
static int mark(const uint8_t *insn, size_t size)
{
	uint32_t word = 0;

	if (arm64) {	/* HINT #96 and #97 */
		memcpy(&word, insn, 4);
		return word == 0xd5032c1f ? 1 : word == 0xd5032c3f ? 2 : 0;
	}
	if (size != 7 || memcmp(insn, "\x0f\x1f\x80" "LPB", 6))
		return 0;
	return insn[6] == 1 || insn[6] == 2 ? insn[6] : 0;
}

static void executed_mark(unsigned int cpu, void *which)
{
	if (which == (void *)2) {
		fprintf(out, "%llu\n", (unsigned long long)(last - previous));
		fflush(out);
	} else {
		previous = last;
		last = count;
	}
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t i, size, n = qemu_plugin_tb_n_insns(tb);
	struct qemu_plugin_insn *insn;
	const uint8_t *data;
	uintptr_t which;
	uint32_t word = 0;

	for (i = 0; i < n; i++) {
		insn = qemu_plugin_tb_get_insn(tb, i);
		data = qemu_plugin_insn_data(insn);
		size = qemu_plugin_insn_size(insn);
		if (arm64)
			memcpy(&word, data, 4);
		which = mark(data, size);
		if (which)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executed_mark,
					QEMU_PLUGIN_CB_NO_REGS, (void *)which);
		if (arm64 ? arm64_locked(word) : x86_locked(data, size))
			qemu_plugin_register_vcpu_insn_exec_inline(insn,
					QEMU_PLUGIN_INLINE_ADD_U64, &count, 1);
	}
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
		fprintf(stderr, "locked.so takes out=FILE\n");
		return -1;
	}
	arm64 = !strcmp(info->target_name, "aarch64");
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}

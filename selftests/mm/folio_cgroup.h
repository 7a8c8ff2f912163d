/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A memory cgroup for what a test of large folios counts: what others do in the
 * system does not count there.
 */

#ifndef __FOLIO_CGROUP_H__
#define __FOLIO_CGROUP_H__

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "cgroup_util.h"
#include "folio_region.h"

struct folio_cgroup {
	char root[PATH_MAX];
	char *path;	/* or NULL, if there is none */
};

static inline void folio_cgroup_leave(struct folio_cgroup *cgroup)
{
	if (!cgroup->path)
		return;
	cg_enter_current(cgroup->root);
	cg_destroy(cgroup->path);
	free(cgroup->path);
	cgroup->path = NULL;
}

/* Become the only process of a new one. False if there are no such groups. */
static inline bool folio_cgroup_enter(struct folio_cgroup *cgroup,
				      const char *name)
{
	char unique[64];

	cgroup->path = NULL;
	if (cg_find_unified_root(cgroup->root, sizeof(cgroup->root), NULL) ||
	    cg_read_strstr(cgroup->root, "cgroup.controllers", "memory") ||
	    (cg_read_strstr(cgroup->root, "cgroup.subtree_control", "memory") &&
	     cg_write(cgroup->root, "cgroup.subtree_control", "+memory")))
		return false;
	snprintf(unique, sizeof(unique), "%s_%d", name, getpid());
	cgroup->path = cg_name(cgroup->root, unique);
	if (cgroup->path && !cg_create(cgroup->path) &&
	    !cg_enter_current(cgroup->path))
		return true;
	folio_cgroup_leave(cgroup);
	return false;
}

static inline long folio_cgroup_pages(struct folio_cgroup *cgroup,
				      const char *key)
{
	return cg_read_key_long(cgroup->path, "memory.stat", key) /
	       (long)psize();
}

/*
 * Is it @pages more than @before? The numbers of a group may be some seconds old.
 * Logs if it is not.
 */
static inline bool folio_cgroup_counts(struct folio_cgroup *cgroup,
				       const char *key, long before, long pages,
				       long slack, size_t size, const char *when)
{
	long now = 0;
	int i;

	for (i = 0; i < 100; i++) {
		now = folio_cgroup_pages(cgroup, key) - before;
		if (labs(now - pages) <= slack)
			return true;
		usleep(1000 * 50);
	}
	ksft_print_msg("%zukB: %s is %ld pages, not %ld, %s\n", size >> 10,
		       key, now, pages, when);
	return false;
}

#endif /* __FOLIO_CGROUP_H__ */

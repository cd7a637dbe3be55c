// See mutant_switch.h. The file is mapped, so that children and those that a signal ends write into it, too.
#include "dev/test/mutant_switch.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

static unsigned char unread[1 << 16];
int mutant_now;
unsigned char *mutant_reached = unread;

__attribute__((constructor)) static void mutant_read(void) {
    const char *number = getenv("MUTANT"), *path = getenv("MUTANTS_REACHED");
    const int file = path ? open(path, O_RDWR) : -1;
    if (number) mutant_now = atoi(number);
    if (file < 0) return;
    void *map = mmap(NULL, sizeof unread, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) mutant_reached = (unsigned char *)map;
}

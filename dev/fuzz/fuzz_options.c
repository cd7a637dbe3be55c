// Command lines, and the settings of a run that --resume takes over.
#define PROGRAM_GROUPS ~0
#include "dev/fuzz/fuzz.h"

#include "clipc/train/settings.h"

enum { ARGUMENTS_MOST = 64 };

// Splits a text at line breaks into argv; the number of arguments.
static int split(char *text, char **argv) {
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t) "train_clip";
    for (char *line; (line = strsep(&text, "\n")) && argc < ARGUMENTS_MOST;)
        if (line[0]) argv[argc++] = line;
    argv[argc] = NULL;
    return argc;
}

// The settings of a run are the first part of the input, up to a NUL, the command line is the second.
static void fuzz_one(const uint8_t *data, size_t size) {
    char *argv[ARGUMENTS_MOST + 1];
    Options o;
    if (size < 1) return;
    char *settings = fuzz_string(data + 1, size - 1);
    const size_t length = strlen(settings);
    char *command = length + 1 < size ? settings + length + 1 : settings + length;
    options_parse(&o, split(command, argv), argv);
    char *kept = settings_without_acting(settings, &o);
    settings_print_acting(settings, stdout);
    options_adopt(&o, kept, data[0] & 1);
    free(kept);
    options_print(&o, stdout);
    options_free(&o);
    free(settings);
}
